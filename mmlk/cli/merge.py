"""Merge the parallel branches of a trained model.

    mmlk merge CONFIG CHECKPOINT OUT.pth

Checks on a real input that the outputs are equal before it writes the checkpoint and, beside it, its config.
"""
import argparse
import os.path as osp

from mmlk.cli.options import add_config_options, fail


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='config the checkpoint was trained with')
    parser.add_argument('checkpoint', help='trained checkpoint')
    parser.add_argument('out', help='where to write the merged checkpoint, a .pth; its config goes beside it, a .py')
    parser.add_argument('--image', help='image for the check; a photograph that scikit-image ships by default')
    parser.add_argument('--tolerance', type=float, default=1e-3,
                        help='largest allowed difference of a backbone feature, relative to the largest feature')
    add_config_options(parser)


def run(args: argparse.Namespace) -> None:
    if osp.splitext(args.out)[1] != '.pth':
        fail(f'OUT must be a .pth file, got {args.out}')
    from mmlk.cli.prepare import find_checkpoint, read_config
    from mmlk.deploy.merging import merge_checkpoint
    cfg = read_config(args.config, args.cfg_options)
    try:
        result = merge_checkpoint(cfg, find_checkpoint(args.checkpoint), args.out, args.image, args.tolerance)
    except ValueError as error:
        fail(str(error))
    print(result)
