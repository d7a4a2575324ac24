"""Write docs/zoo.md, the page of models and weights, from the records in configs/metafiles, and lay these out.

    python tools/render_zoo.py           # the page
    python tools/render_zoo.py --count   # first measure what a new or changed config lacks; `--count all`: every config
    python tools/render_zoo.py --check   # write nothing; exit code 1 when something is stale
"""
import argparse
import sys
import warnings
from pathlib import Path

from mmengine.config import Config

from mmlk.analysis import zoo


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    action.add_argument('--count', nargs='?', const='stale', choices=['stale', 'all'],
                        help='measure parameters and multiply-adds and write them into the records')
    action.add_argument('--check', action='store_true', help='write nothing, say what is stale')
    parser.add_argument('--root', type=Path, default=Path(__file__).resolve().parent.parent,
                        help='folder of configs/ and docs/ (default: this checkout)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    warnings.filterwarnings('ignore', module='mmseg')  # on losses and sizes, which are not in question here
    try:
        records = zoo.read(args.root)
    except ValueError as error:
        sys.exit(str(error))
    rows = zoo.rows(records)
    configs = {row['Name']: Config.fromfile(str(args.root / row['Config'])) for row in rows}
    due = [row for row in rows if args.count == 'all' or not zoo.is_fresh(configs[row['Name']], row)]
    if args.count:
        for i, row in enumerate(due, 1):
            print(f"{i}/{len(due)} {row['Name']}", end=' ', flush=True)
            try:
                zoo.refresh(configs[row['Name']], row)
            except Exception as error:  # of whatever kind, the other configs can be counted
                print(f'not counted: {type(error).__name__}: {error}')
                continue
            print(f"{row['Metadata']['Parameters'] / 1e6:.2f}M {row['Metadata']['FLOPs'] / 1e9:.1f}G "
                  f"at {row['Metadata']['Input Size']}", flush=True)
            for path, record in records.items():
                if row in record['Models']:
                    zoo.write(path, record)
        due = [row for row in due if not zoo.is_fresh(configs[row['Name']], row)]
    if due:
        print(f"not counted as their configs are now: {', '.join(row['Name'] for row in due)}\n"
              'python tools/render_zoo.py --count measures them')

    stale = []
    try:
        texts = {path: zoo.dump(path, record) for path, record in records.items()}
        texts[args.root / 'docs' / 'zoo.md'] = zoo.render(records)
    except ValueError as error:
        sys.exit(str(error))
    for path, text in texts.items():
        if not path.is_file() or path.read_text(encoding='utf-8') != text:
            stale.append(path)
            if args.check:
                print(f'{path} is stale; python tools/render_zoo.py writes it')
            else:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding='utf-8')
                print(f'{path}: written')
    sys.exit(1 if due or args.check and stale else 0)


if __name__ == '__main__':
    main()
