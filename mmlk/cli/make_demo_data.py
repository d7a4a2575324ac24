"""Write synthetic demo scenes in the folder layout of a real dataset.

    mmlk demo-data --layout ade20k --out data/demo/ade20k

Does nothing, and says so, where the folder already holds what is asked for.
"""
import argparse
import sys
from pathlib import Path

from mmlk.cli.options import check_minimum, fail

LAYOUTS = ('ade20k', 'cityscapes', 'coco', 'imagenet', 'voc')  # of mmlk.datasets.layouts, not imported here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--layout', required=True, choices=LAYOUTS)
    parser.add_argument('--out', required=True, type=Path, help="the dataset's root folder")
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--train', type=int, default=600, help='scenes to train on (default: %(default)s)')
    parser.add_argument('--val', type=int, default=60, help='scenes to validate on (default: %(default)s)')
    parser.add_argument('--size', type=int, nargs=2, default=(128, 160), metavar=('H', 'W'),
                        help='pixels, each at least 32 (default: 128 160)')
    parser.add_argument('--overwrite', action='store_true',
                        help="write into --out though it holds other files; the layout's own folders there "
                             '(images, annotations, ...) are deleted first')


def run(args: argparse.Namespace) -> None:
    check_minimum(args, seed=0, train=1, val=1)
    if min(args.size) < 32:
        fail(f"--size must be at least 32 32, got {' '.join(map(str, args.size))}")
    from rich.progress import track

    from mmlk.datasets.layouts import DemoPlan, NotOurs, write_demo
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
