"""Effective receptive fields of one or more networks, as RepLKNet measures them: how far each really sees.

    mmlk erf CONFIG CHECKPOINT --images DIR
    mmlk erf CONFIG --config2 OTHER_CONFIG --config2 timm:resnet50 --names ours theirs ResNet-50

A config is that of a segmentor, detector or classifier, of whose backbone the field is, or timm:NAME. A checkpoint is a
file, an http(s) URL, hf-hub:owner/name/file, or a name that mmlk weights lists. Without one, weights are random: those
that training from scratch starts with, but for branches that are scaled by almost zero, whose scales are set to one.

Prints the table of area ratios, and writes erf.png, erf.json and each network's mean scores as NAME.npy.
"""
import argparse
import json
import os
import re
from typing import TYPE_CHECKING, Optional

from mmlk._types import TIMM
from mmlk.cli.options import add_config_options, add_device, check_device, check_minimum, fail

if TYPE_CHECKING:
    from mmlk.analysis.erf import ErfNetwork


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='config file, or timm:NAME')
    parser.add_argument('checkpoint', nargs='?', help='its weights; random without')
    parser.add_argument('--config2', nargs='+', action='append', default=[], metavar=('CONFIG', 'CHECKPOINT'),
                        help='a further network, beside the first; may be given again')
    parser.add_argument('--names', nargs='+', metavar='NAME', help="the networks' names; the configs' by default")
    parser.add_argument('--images', metavar='DIR', help="folder of images; scikit-image's photographs by default")
    parser.add_argument('--num-images', type=int, default=50, metavar='N', help='at most so many (%(default)s)')
    parser.add_argument('--size', type=int, default=1024, help='side that images are resized to (%(default)s)')
    parser.add_argument('--stage', type=int, help='which of the stages that the backbones return, as their '
                        'out_indices name them; the last by default')
    parser.add_argument('--decades', type=float, metavar='N', help='spread the colours of the picture over N powers of '
                        'ten: 4 shows what small scores hide, as those of random weights')
    parser.add_argument('--out', default='work_dirs/erf', metavar='DIR', help='folder of the results (%(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of random weights (%(default)s)')
    add_device(parser)
    add_config_options(parser)


def check(args: argparse.Namespace) -> None:
    """Add ``models``, (config, checkpoint) pairs, and the default names; end the program if an option is wrong."""
    from mmlk.cli.prepare import add_models
    check_minimum(args, num_images=1, size=8)
    if args.decades is not None and args.decades <= 0:
        fail(f'--decades must be above 0, got {args.decades:g}')
    args.device = check_device(args.device)
    add_models(args, 'config2', args.config, args.config2)
    if len(args.names) != len(args.models) or len({file_name(name) for name in args.names}) < len(args.names):
        fail(f'--names must be {len(args.models)} different names, got {", ".join(args.names)}')


def file_name(name: str) -> str:
    """A network's name with every character that file names may not have replaced by ``_``."""
    return re.sub(r'[^\w.+-]', '_', name)


def build(config: str, checkpoint: Optional[str], args: argparse.Namespace) -> 'ErfNetwork':
    """A network with its weights loaded, random ones without a checkpoint."""
    import torch

    from mmlk.analysis import erf
    from mmlk.cli.prepare import read_config
    from mmlk.weights import load
    torch.manual_seed(args.seed)
    if config.startswith(TIMM):
        network = erf.erf_from_timm(config[len(TIMM):], initialise=checkpoint is None)
    else:
        network = erf.erf_from_config(read_config(config, args.cfg_options), initialise=checkpoint is None)
    if checkpoint:
        load(network.backbone, checkpoint)
    return network


def run(args: argparse.Namespace) -> None:
    check(args)
    import numpy as np
    from rich.markup import escape
    from rich.progress import track

    from mmlk.analysis import erf
    from mmlk.cli.prepare import find_checkpoint
    from mmlk.datasets.images import find_images, packaged_photographs, read_image
    from mmlk.weights import WeightsError
    try:
        paths = find_images(args.images) if args.images else packaged_photographs()
        paths = paths[:args.num_images]
        images = {3: [read_image(path, args.size) for path in paths]}
    except ValueError as error:
        fail(str(error))
    networks = []
    for config, checkpoint in args.models:
        checkpoint = checkpoint and find_checkpoint(checkpoint)
        try:
            network = build(config, checkpoint, args)
            networks.append((network, *network.check(args.size, args.stage)))
        except WeightsError as error:
            fail(str(error))
        except ValueError as error:
            fail(f'{config}: {error}')
    try:
        os.makedirs(args.out, exist_ok=True)
    except OSError as error:
        fail(f'--out {args.out}: {error}')

    fields, report = {}, []
    for name, (config, checkpoint), (network, stage, shape) in zip(args.names, args.models, networks):
        channels = network.channels
        if channels not in images:
            images[channels] = [read_image(path, args.size, channels) for path in paths]
        try:
            fields[name] = erf.measure_erf(network, track(images[channels], description=escape(name)), stage,
                                           args.device)
        except ValueError as error:
            fail(f'{name}: {error}')
        np.save(os.path.join(args.out, f'{file_name(name)}.npy'), fields[name].scores)
        report.append(dict(name=name, config=config, checkpoint=checkpoint or f'random, seed {args.seed}', stage=stage,
                           map=shape[1:], **erf.summary(fields[name])))
    erf.heat_maps(fields, args.decades).savefig(os.path.join(args.out, 'erf.png'), dpi=120)
    with open(os.path.join(args.out, 'erf.json'), 'w') as file:
        json.dump(dict(size=args.size, images=[path.name for path in paths], networks=report), file,
                  indent=1)
    print(f'{len(paths)} images, {args.size} x {args.size}; area (side in pixels) of the smallest centred square with '
          f'more than t of the contribution:\n\n{erf.table(fields)}\n')
    for name, field in fields.items():
        if field.skipped:
            print(f'{name}: {field.skipped} images gave NaN and were left out')
    print(f'erf.png, erf.json and scores are in {args.out}')
