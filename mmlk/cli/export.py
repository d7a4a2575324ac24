"""Write a trained model as ONNX, TorchScript or an exported program, checked against PyTorch on real images.

    mmlk export configs/upernet_replknet31b_ade20k.py CHECKPOINT
    mmlk export CONFIG CHECKPOINT --format torchscript --shape 1024x512 --dynamic-size --images DIR

Branches are merged first. The input is RGB of values 0 to 255: mean and std of the config are inside, and in the file's
metadata. A segmentor takes any batch and gives labels and logits. A detector takes one image and gives boxes, scores,
labels and masks in ONNX, or with --outputs features, and in the other formats, the maps of its head or neck.
"""
import argparse
import os
import os.path as osp
from pathlib import Path

from mmlk.cli.options import add_config_options, check_minimum, fail

FORMATS = ('onnx', 'torchscript', 'exported-program')  # of mmlk.deploy.formats, which imports PyTorch

OUTPUTS = ('detections', 'features')  # of mmlk.deploy.export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='config of a segmentor or detector')
    parser.add_argument('checkpoint', help='its trained checkpoint: a file, an http(s) URL, or a name that '
                        'mmlk weights lists')
    parser.add_argument('--format', choices=FORMATS, default='onnx', help='(%(default)s)')
    parser.add_argument('--outputs', choices=OUTPUTS, help='of a detector; by default detections in ONNX, features in '
                        'the other formats')
    parser.add_argument('--shape', metavar='WIDTHxHEIGHT', help='of the images; by default the window that the config '
                        'tests by, or the crops that it trains on')
    parser.add_argument('--dynamic-size', action='store_true', help='take images of other sizes too')
    parser.add_argument('--opset', type=int, metavar='N', help="of ONNX; by default that of torch's exporter")
    parser.add_argument('--images', nargs='+', default=[], metavar='FILE', help='images to compare on, or folders of '
                        'them; photographs that scikit-image carries by default')
    parser.add_argument('--num-images', type=int, default=6, metavar='N', help='at most so many (%(default)s)')
    parser.add_argument('--tolerance', type=float, default=1e-3, metavar='T', help='largest allowed difference of an '
                        'output, relative to its largest value (%(default)s)')
    parser.add_argument('--out', metavar='FILE', help='work_dirs/export/<config name>, with the ending of the format, '
                        'by default')
    add_config_options(parser)


def run(args: argparse.Namespace) -> None:
    check_minimum(args, num_images=1)
    from rich.console import Console

    from mmlk.analysis.complexity import parse_size
    from mmlk.cli.prepare import find_checkpoint, read_config
    from mmlk.datasets.images import find_images, packaged_photographs
    from mmlk.deploy import formats
    from mmlk.deploy.export import export
    name = osp.splitext(osp.basename(args.config))[0]
    out = args.out or osp.join('work_dirs', 'export', name + formats.FORMATS[args.format].suffix)
    cfg = read_config(args.config, args.cfg_options)
    console = Console(highlight=False, soft_wrap=True)
    try:
        size = args.shape and parse_size(args.shape)
        images = [path for text in args.images for path in (find_images(text) if os.path.isdir(text) else [Path(text)])]
        images = (images or packaged_photographs())[:args.num_images]
        with console.status('reading') as status:
            result = export(cfg, find_checkpoint(args.checkpoint), out, images, args.format, size,
                            args.dynamic_size, args.opset, args.tolerance, status.update, args.outputs)
    except (OSError, ValueError) as error:
        fail(str(error))
    console.print(str(result))
