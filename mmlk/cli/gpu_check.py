"""Prove the depthwise operator on a GPU: tests, precision, times against the GPU's floors, RepLKNet-31B against stock.

    bash tools/gpu_check.sh                          # at most 8 minutes, every part
    bash tools/gpu_check.sh --parts precision passes
    TRITON_INTERPRET=1 mmlk gpu-check --device cpu --quick    # that the script itself works

Each part has a share of the time and stops when that is over. What is measured is printed, and saved in ``check.json``
and ``check.md`` line by line, so that a run that is cut off leaves all it had. Needs no OpenMMLab package. The exit
code is 1 if a test or a comparison failed; times are never a failure.
"""
import argparse
from pathlib import Path

from mmlk.cli.options import fail

PARTS = ('warm', 'precision', 'passes', 'tests', 'models', 'grid')  # of mmlk.studies.gpu_check, which imports PyTorch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS, help='default: all')
    parser.add_argument('--device', default='cuda', help='(default: %(default)s)')
    parser.add_argument('--seconds', type=float, default=450, help='for all parts together (default: 450)')
    parser.add_argument('--quick', action='store_true', help='tiny problems, to try the script itself')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu_check'), help='folder of the results')
    parser.add_argument('--warm', type=int, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    import torch

    from mmlk.studies import gpu_check
    try:
        args.device = torch.device(args.device)
    except RuntimeError as error:
        fail(f'--device {args.device}: {str(error).splitlines()[0]}')
    if args.device.type == 'cuda' and not torch.cuda.is_available():
        fail('torch finds no CUDA device; --device cpu --quick tries the script itself')
    if args.warm is not None:
        gpu_check.warm(args.warm)
        return 0
    return gpu_check.check(args)
