"""Write the README's table of models from the metafiles in configs/metafiles.

    python tools/render_zoo.py           # the table
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
                        help='measure parameters and multiply-adds and write them into the metafiles')
    action.add_argument('--check', action='store_true', help='write nothing, say what is stale')
    parser.add_argument('--root', type=Path, default=Path(__file__).resolve().parent.parent,
                        help='folder of model-index.yml and README.md (default: this checkout)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    warnings.filterwarnings('ignore', module='mmseg')  # on losses and sizes, which are not in question here
    metafiles = zoo.read(args.root)
    rows = zoo.rows(metafiles)
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
            for path, metafile in metafiles.items():
                if row in metafile['Models']:
                    zoo.write(path, metafile)
        due = [row for row in due if not zoo.is_fresh(configs[row['Name']], row)]
    if due:
        print(f"not counted as their configs are now: {', '.join(row['Name'] for row in due)}\n"
              'python tools/render_zoo.py --count measures them')

    readme = args.root / 'README.md'
    before = readme.read_text()
    try:
        after = zoo.insert(before, zoo.render(metafiles))
    except ValueError as error:
        sys.exit(f'{readme}: {error}')
    if args.check:
        if after != before:
            print(f'the table in {readme} is stale; python tools/render_zoo.py writes it')
    elif after != before:
        readme.write_text(after)
        print(f'{readme}: written, {len(rows)} configs')
    sys.exit(1 if due or args.check and after != before else 0)


if __name__ == '__main__':
    main()
