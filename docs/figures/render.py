"""Draw the manual's pictures, and write its tables, from the figures of saved runs beside this file.

    python docs/figures/render.py            # all that is drawn from numbers
    python docs/figures/render.py --tables   # the tables alone

``*.json`` hold the figures, with the command and the machine; ``*.md`` and ``*.svg`` are made of them.
"""
import argparse
import json
from pathlib import Path

from mmlk._text import markdown_table
from mmlk.analysis import latency
from mmlk.studies import report

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent


def read(name: str) -> dict:
    return json.loads((FOLDER / f'{name}.json').read_text(encoding='utf-8'))


def table(header: list, rows: list, saved: dict) -> str:
    """A table in Markdown, and under it what it is of and the command."""
    return '\n'.join([markdown_table(header, rows), '', saved['about'], '', '```bash', saved['command'], '```', ''])


def latency_rows() -> list:
    rows = []
    for row in read('latency')['rows']:
        first, median, third = (value / 1e3 for value in row['quartiles_ms'])
        rows.append(latency.LatencyRow(row['name'], row['variant'], row['mode'], 1, 0, False,
                                seconds=[first, first, median, third, third]))  # of these quartiles
    return rows


def latency_table() -> str:
    saved, cells = read('latency'), {}
    for row in saved['rows']:
        first, median, third = row['quartiles_ms']
        merged = ', merged' if row['variant'] == 'merged' else ''
        cells.setdefault(row['name'] + merged, {})[row['mode']] = f'{median} ({first} to {third})'
    rows = [[name, modes.get('inference', '–'), modes.get('training', '–')] for name, modes in cells.items()]
    return table(['backbone', 'inference, ms (middle half of 7 turns)', 'training step, ms'], rows, saved)


def latency_picture():
    configs = {row['name']: row['config'] for row in read('latency')['rows']}
    results = {name: latency.known_result(config, ROOT) for name, config in configs.items()}
    return latency.plot_latency(latency_rows(), results, '')


def camvid() -> report.StudyReport:
    saved = read('camvid')
    columns = {key: report.Column(**column) for key, column in saved['columns'].items()}
    lines = []
    for model in saved['models']:
        cells = {}
        for key in columns:
            value, *spread = model[key] if isinstance(model[key], list) else [model[key]]
            half = spread[0] / 2**0.5 if spread else 0  # two values that far from their mean have this deviation
            cells[key] = report.Cell((value - half, value + half) if spread else (value, ), '', '')
        lines.append(report.StudyRow(model['name'], '', cells))
    return report.StudyReport('', lines, columns, [])


def camvid_table() -> str:
    made = camvid()
    rows = [[line.name, *(column.show(line.cells[key], ' ± ') for key, column in made.columns.items())]
            for line in made.lines]
    return table(['model', *(column.title for column in made.columns.values())], rows, read('camvid'))


def camvid_picture():
    return report.plot_study(camvid(), 'miou', read('camvid')['panels'])


def erf_table() -> str:
    saved = read('erf')
    header = ['network', *(f't = {float(threshold):.0%}' for threshold in saved['networks'][0]['squares'])]
    rows = [[network['name'], *(f'{ratio:.1%} ({side})' for side, ratio in network['squares'].values())]
            for network in saved['networks']]
    return table(header, rows, saved)


TABLES = {'erf': erf_table, 'latency': latency_table, 'camvid': camvid_table}
PICTURES = {'latency': latency_picture, 'camvid': camvid_picture}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tables', action='store_true', help='write no picture')
    args = parser.parse_args()
    for name, make in TABLES.items():
        (FOLDER / f'{name}.md').write_text(make(), encoding='utf-8')
    if not args.tables:
        import matplotlib
        matplotlib.rcParams['svg.hashsalt'] = 'mmlk'  # the same file for the same figures
        for name, draw in PICTURES.items():
            draw().savefig(FOLDER / f'{name}.svg', metadata={'Date': None})


if __name__ == '__main__':
    main()
