"""Draw image, ground truth and prediction side by side for some test images of a config.

    mmlk show-predictions CONFIG CHECKPOINT --out predictions.png
"""
import argparse
import os
import os.path as osp

from mmlk.cli.options import add_config_options, add_device, choose_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', required=True, metavar='FILE', help='picture to write, a .png say')
    parser.add_argument('--num', type=int, default=4, help='how many scenes (%(default)s)')
    parser.add_argument('--score', type=float, default=0.3, help='least score of a detection (%(default)s)')
    add_device(parser)
    add_config_options(parser)


def run(args: argparse.Namespace) -> None:
    from mmlk.analysis.panels import panels, predict_some
    from mmlk.cli.prepare import find_checkpoint, one_message, preflight, read_config
    cfg = read_config(args.config, args.cfg_options)
    preflight(cfg, ('test', ))
    checkpoint = find_checkpoint(args.checkpoint)
    with one_message():
        scenes, classes, palette = predict_some(cfg, checkpoint, args.num, args.score, choose_device(args.device))
    figure = panels(scenes, classes, palette)
    os.makedirs(osp.dirname(osp.abspath(args.out)), exist_ok=True)
    figure.savefig(args.out, dpi=120)
    print(f'{len(scenes)} scenes drawn: {args.out}')
