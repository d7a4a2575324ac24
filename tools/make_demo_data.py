"""Write synthetic demo scenes in the folder layout of a real dataset.

    python tools/make_demo_data.py --layout ade20k --out data/demo/ade20k

Does nothing, and says so, where the folder already holds what is asked for.
"""
import argparse
import sys
from pathlib import Path

from rich.progress import track

from mmlk.datasets.layouts import TOP_FOLDERS, DemoPlan, NotOurs, write_demo


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--layout', required=True, choices=sorted(TOP_FOLDERS))
    parser.add_argument('--out', required=True, type=Path, help="the dataset's root folder")
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--train', type=int, default=600, help='scenes to train on (default: %(default)s)')
    parser.add_argument('--val', type=int, default=60, help='scenes to validate on (default: %(default)s)')
    parser.add_argument('--size', type=int, nargs=2, default=(128, 160), metavar=('H', 'W'),
                        help='pixels, each at least 32 (default: 128 160)')
    parser.add_argument('--overwrite', action='store_true',
                        help="write into --out though it holds other files; the layout's own folders there "
                             '(images, annotations, ...) are deleted first')
    args = parser.parse_args()
    if args.seed < 0 or args.train < 1 or args.val < 1 or min(args.size) < 32:
        parser.error('--seed must not be negative, --train and --val at least 1, --size at least 32 32')
    return args


def main() -> None:
    args = parse_args()
    plan = DemoPlan(args.layout, args.seed, args.train, args.val, tuple(args.size))
    try:
        written = write_demo(plan, args.out, args.overwrite, lambda items, what: track(items, description=what))
    except NotOurs as error:
        sys.exit(f'{error}.\nGive an empty or a new folder as --out, or --overwrite to write there anyway.')
    except (OSError, ImportError) as error:
        sys.exit(f'Cannot write the demo data to {args.out}: {error}')
    height, width = plan.size
    print(f'{"Wrote" if written else "Already there:"} {plan.train} train and {plan.val} val scenes of '
          f'{height}x{width}, seed {plan.seed}, {plan.layout} layout, in {args.out}')


if __name__ == '__main__':
    main()
