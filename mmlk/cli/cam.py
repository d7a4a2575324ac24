"""Class-activation maps of a segmentor, detector or classifier, drawn over images.

    mmlk cam CONFIG CHECKPOINT IMAGE FOLDER ...
    mmlk cam CONFIG CHECKPOINT IMAGE --target dog --layer backbone.stages.3 backbone.stages.2
    mmlk cam timm:convnext_tiny.fb_in1k IMAGE
    mmlk cam RepLKNet-31B CHECKPOINT IMAGE

A config is that of a segmentor, detector or classifier; in its place may stand timm:NAME, a classifier that
mmlk weights lists, or a backbone of mmlk with a checkpoint that has a classifier in it. A checkpoint is a file, an
http(s) URL, hf-hub:owner/name/file, or a name that mmlk weights lists; it comes before the images. Without one, a
config's weights are random, and timm's models take timm's. Without images, those that scikit-image carries are taken.

Writes an overlay for every image and layer, with what is explained outlined in white; grid.png of all of them; cam.json
and, with the maps as numbers, cam.npz. Needs pytorch-grad-cam: pip install grad-cam
"""
import argparse
import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List

from mmlk._text import one_line
from mmlk.cli.options import add_config_options, add_device, check_minimum, choose_device, fail

if TYPE_CHECKING:
    from mmlk.analysis.cam import Subject

# of mmlk.analysis.cam, which imports PyTorch
METHODS = ('gradcam', 'gradcam++', 'hirescam', 'layercam', 'xgradcam', 'eigencam', 'eigengradcam')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='see above')
    parser.add_argument('inputs', nargs='*', metavar='[CHECKPOINT] IMAGE',
                        help='weights, and images or folders of them')
    parser.add_argument('--layer', nargs='+', metavar='NAME', help='modules to look at, as model.named_modules() has '
                        'them; the last map of the backbone by default')
    parser.add_argument('--target', metavar='CLASS', help='class to explain, by name or number; by default that of the '
                        'most pixels, of the surest object, or of the highest score')
    parser.add_argument('--method', choices=METHODS, default='gradcam', help='(%(default)s)')
    parser.add_argument('--score', type=float, default=0.3, help='least score of a detection (%(default)s)')
    parser.add_argument('--num-images', type=int, default=20, metavar='N', help='at most so many (%(default)s)')
    parser.add_argument('--out', default='work_dirs/cam', metavar='DIR', help='folder of the results (%(default)s)')
    add_device(parser)
    add_config_options(parser)


def is_image(text: str) -> bool:
    """Whether an argument is meant as an image or a folder of them."""
    from mmlk.datasets.images import SUFFIXES
    return os.path.isdir(text) or text.lower().endswith(SUFFIXES)


def images_of(args: argparse.Namespace) -> List[Path]:
    """Paths of the images, each of which can be read.

    Raises:
        OSError: An image cannot be read.
        ValueError: There is no such file or no image in a folder.
    """
    from rich.progress import track

    from mmlk.datasets.images import find_images, open_image, packaged_photographs
    paths = []
    for text in args.inputs:
        paths += find_images(text) if os.path.isdir(text) else [Path(text)]
    paths = (paths if args.inputs else packaged_photographs())[:args.num_images]
    for path in track(paths, 'reading images'):
        if not path.is_file():
            raise ValueError(f'there is no file {path}')
        open_image(path)
    return paths


def build(args: argparse.Namespace) -> 'Subject':
    """The model to explain, with its weights loaded."""
    from mmlk.analysis import cam, classifiers
    from mmlk.cli.prepare import find_checkpoint, is_config, read_config
    from mmlk.engine.network import build_network
    from mmlk.weights import load
    if args.checkpoint:
        find_checkpoint(args.checkpoint)
    if not is_config(args.config):
        return cam.ClassifierSubject(classifiers.build_classifier(args.config, args.checkpoint))
    cfg = read_config(args.config, args.cfg_options)
    network = build_network(cfg)
    if args.checkpoint:
        load(network, args.checkpoint)
    else:
        print('no checkpoint: weights are random, and so is what the maps show')
    return cam.subject_from_config(cfg, network, args.score)


def names_of(paths: List[Path]) -> List[str]:
    """A file name for every image without its suffix; images of the same name get their index in front."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f'{index}_{stem}' for index, stem in enumerate(stems)]


def run(args: argparse.Namespace) -> None:
    check_minimum(args, num_images=1)
    if find_spec('pytorch_grad_cam') is None:
        fail('pytorch-grad-cam is not installed: pip install grad-cam')
    import numpy as np
    from PIL import Image
    from rich.progress import track

    from mmlk.analysis import cam
    args.checkpoint = None
    if args.inputs and not is_image(args.inputs[0]):
        args.checkpoint, *args.inputs = args.inputs
    try:
        paths = images_of(args)
        subject = build(args)
        layers = args.layer or [subject.default_layer]
        for name in layers:
            subject.layer(name)
        label = None if args.target is None else subject.label(args.target)
        subject.to(choose_device(args.device))
        os.makedirs(args.out, exist_ok=True)
    except (OSError, ValueError) as error:
        fail(str(error))

    rows, report, heats = [], [], {}
    for path, name in track(list(zip(paths, names_of(paths))), args.method):
        facts: Dict[str, Any] = dict(image=str(path))
        report.append(facts)
        try:
            sample = subject.sample(path)
            explained = cam.explain(subject, sample, layers, args.method, label)
        except ValueError as error:
            fail(f'{path}: {error}')
        if explained is None:
            facts['found'] = f'nothing of a score of at least {args.score}'
            continue
        choice, maps = explained
        facts.update(label=choice.label, target=subject.classes[choice.label], found=choice.found, layers={})
        row = cam.CamRow(sample.image, f'{path.name}: {facts["target"]}, {choice.found}', {})
        for layer, heat in maps.items():
            file = f'{name}.png' if len(layers) == 1 else f"{name}_{re.sub(r'[^0-9A-Za-z.-]', '_', layer)}.png"
            row.overlays[layer] = cam.overlay_heat(sample, heat, choice)
            Image.fromarray(row.overlays[layer]).save(os.path.join(args.out, file))
            heats[file[:-len('.png')]] = heat.astype(np.float16)
            facts['layers'][layer] = dict(file=file, empty=not heat.any())
        rows.append(row)
    if rows:
        cam.grid(rows).savefig(os.path.join(args.out, 'grid.png'), dpi=110)
        np.savez_compressed(os.path.join(args.out, 'cam.npz'), **heats)
    with open(os.path.join(args.out, 'cam.json'), 'w') as opened:
        json.dump(dict(config=args.config, checkpoint=args.checkpoint, method=args.method, images=report), opened,
                  indent=1)
    for facts in report:
        empty = [layer for layer, drawn in facts.get('layers', {}).items() if drawn['empty']]
        print(one_line(f"{facts['image']}: {facts.get('target', 'nothing')}, {facts['found']}"
                       f"{'; the map is empty at ' + ', '.join(empty) if empty else ''}"))
    if not rows:
        fail(f'nothing to explain in {len(paths)} images; a lower --score, or another --target?')
    print(f'overlays, grid.png, cam.npz and cam.json are in {args.out}')
