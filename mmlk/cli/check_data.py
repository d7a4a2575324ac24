"""Check the datasets of a config before a run: are they there, can every file be read, do the labels fit.

    mmlk check-data configs/upernet_replknet31b_ade20k.py
"""
import argparse
import sys

from mmlk._text import one_line, printable
from mmlk.cli.options import add_config_options

EXAMPLES = 5  # lines shown of each kind of problem


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config')
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from mmlk.cli.prepare import read_config
    from mmlk.datasets.audit import audit
    from mmlk.datasets.check import missing
    from mmlk.datasets.settings import conflicts
    cfg = read_config(args.config, args.cfg_options)
    problems = missing(cfg)
    if problems:
        sys.exit(printable('\n\n'.join(map(str, problems))))

    console = Console(highlight=False, markup=False)
    contradictions = conflicts(cfg)
    for problem in contradictions:
        console.print(f'PROBLEM: {problem}', soft_wrap=True)
    reports = audit(cfg, track=lambda items, total, what: track(items, description=what, total=total))
    for report in reports:
        console.print('\n' + ', '.join(report.where))
        table = Table('', '', show_header=False)
        for name, number in report.counts.items():
            table.add_row(str(number), one_line(name))
        for kind, lines in report.problems.items():
            if lines:
                table.add_row(str(len(lines)), f'PROBLEM: {kind}')
        console.print(table)
        if report.shares:
            console.print('Shares of pixels: ' + ', '.join(
                f'{one_line(name)} {100 * share:.2f} %' for name, share in report.shares.items()), soft_wrap=True)
        for note in report.notes:
            console.print(f'Note: {one_line(note)}', soft_wrap=True)
        if report.unchecked:
            console.print(f'Not checked: {one_line(report.unchecked)}')
        for kind, lines in report.problems.items():
            for line in lines[:EXAMPLES]:
                # File names and JSON may hold anything, terminal control codes among it.
                console.print(f'{kind}: {one_line(line)}', soft_wrap=True)
            if len(lines) > EXAMPLES:
                console.print(f'{kind}: ... and {len(lines) - EXAMPLES} more')
    found = len(contradictions) + sum(len(lines) for report in reports for lines in report.problems.values())
    console.print(f'Problems found: {found}.' if found else 'No problem found.')
    return 1 if found else 0
