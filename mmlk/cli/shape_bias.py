"""Shape bias of one or more classifiers on cue-conflict images, per category, beside that of people.

    mmlk shape-bias replknet-31b_in1k --images DIR
    mmlk shape-bias RepLKNet-31B FILE --model2 timm:resnet50 --model2 CONFIG FILE2 --images DIR

A model is one of:

- a classifier that mmlk weights lists, which brings its weights;
- a backbone of mmlk such as RepLKNet-31B, and a checkpoint with a classifier in it, official or of another toolbox;
- the config of a segmentor or detector, whose backbone is taken, and such a checkpoint;
- timm:NAME, with a checkpoint or with timm's own weights.

A checkpoint is a file, an http(s) URL, hf-hub:owner/name/file, or a name that mmlk weights lists. Classes are those of
ImageNet-1K. The folder of images is laid out as cat/cat4-truck2.png, as in
https://github.com/rgeirhos/texture-vs-shape, folder stimuli/style-transfer-preprocessed-512.

Prints the table, and writes shape_bias.png and shape_bias.json.
"""
import argparse
import json
import os
from typing import TYPE_CHECKING, Optional

from mmlk.cli.options import add_config_options, add_device, check_minimum, choose_device, fail

if TYPE_CHECKING:
    from mmlk.analysis.classifiers import Classifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', help='see above')
    parser.add_argument('checkpoint', nargs='?', help='its weights')
    parser.add_argument('--model2', nargs='+', action='append', default=[], metavar=('MODEL', 'CHECKPOINT'),
                        help='a further model, beside the first; may be given again')
    parser.add_argument('--names', nargs='+', metavar='NAME', help="the models' names in table and picture")
    parser.add_argument('--images', required=True, metavar='DIR', help='folder of cue-conflict images')
    parser.add_argument('--size', type=int, help="side that images are resized to; the models' own by default")
    parser.add_argument('--mean', type=float, nargs=3, help='of the pixels, 0..255, in the order that the models take; '
                        "the models' own by default")
    parser.add_argument('--std', type=float, nargs=3, help='the deviation')
    parser.add_argument('--bgr', action='store_true', help='the models take blue first')
    parser.add_argument('--by-order', action='store_true',
                        help="take a checkpoint's tensors in their order, whatever their names; for timm:NAME")
    parser.add_argument('--batch-size', type=int, default=8, help='images at a time (%(default)s)')
    parser.add_argument('--out', default='work_dirs/shape_bias', metavar='DIR',
                        help='folder of the results (%(default)s)')
    add_device(parser)
    add_config_options(parser)


def check(args: argparse.Namespace) -> None:
    """Add ``models``, (model, checkpoint) pairs, and the default names; end the program if an option is wrong."""
    from mmlk.cli.prepare import add_models
    check_minimum(args, batch_size=1, size=1)
    add_models(args, 'model2', args.model, args.model2)
    if len(args.names) != len(args.models) or len({*args.names, 'humans'}) <= len(args.names):
        fail(f"--names must be {len(args.models)} different names, not 'humans', got {', '.join(args.names)}")


def build(model: str, checkpoint: Optional[str], args: argparse.Namespace) -> 'Classifier':
    """A classifier with its weights loaded. ``--size``, ``--mean``, ``--std`` and ``--bgr`` replace its settings."""
    from mmlk.analysis import classifiers
    from mmlk.cli.prepare import is_config, read_config
    from mmlk.preprocessors import Normalization
    if is_config(model):
        cfg = read_config(model, args.cfg_options)
        if checkpoint is None:
            raise ValueError(f'{model} needs a checkpoint: a file with a classifier in it')
        classifier = classifiers.classifier_from_config(cfg, checkpoint)
    else:
        classifier = classifiers.build_classifier(model, checkpoint, args.by_order)
    mean, std, bgr = classifier.normalization
    classifier.expect(args.size or classifier.size,
                      Normalization(tuple(args.mean or mean), tuple(args.std or std), args.bgr or bgr))
    return classifier


def run(args: argparse.Namespace) -> None:
    check(args)
    from rich.markup import escape
    from rich.progress import track

    from mmlk.analysis import shape_bias
    from mmlk.cli.prepare import find_checkpoint
    from mmlk.datasets.images import open_image
    device = choose_device(args.device)
    try:
        stimuli = shape_bias.find_stimuli(args.images)
        for stimulus in track(stimuli, 'reading images'):
            open_image(stimulus.path)
        models = []
        for model, checkpoint in args.models:
            if checkpoint:
                find_checkpoint(checkpoint)
            models.append(build(model, checkpoint, args))
        os.makedirs(args.out, exist_ok=True)
    except (OSError, ValueError) as error:
        fail(str(error))

    tallies, report = {}, []
    for name, (model, _), classifier in zip(args.names, args.models, models):
        batches = [stimuli[i:i + args.batch_size] for i in range(0, len(stimuli), args.batch_size)]
        try:
            decisions = shape_bias.decide(classifier, track(batches, escape(name)), device)
        except (RuntimeError, ValueError) as error:  # of a size that the network does not take, say
            fail(f'{name}: {error}')
        tallies[name] = shape_bias.tally(stimuli, decisions)
        report.append(dict(name=name, model=model, checkpoint=classifier.source, images=classifier.images,
                           **shape_bias.summary(tallies[name])))
    shape_bias.plot_shape_bias(tallies).savefig(os.path.join(args.out, 'shape_bias.png'), dpi=120)
    conflicts = sum(stimulus.conflict for stimulus in stimuli)
    with open(os.path.join(args.out, 'shape_bias.json'), 'w') as file:
        json.dump(dict(stimuli=len(stimuli), conflicts=conflicts, models=report,
                       humans=shape_bias.summary(shape_bias.HUMANS)), file, indent=1)
    print(f'{len(stimuli)} images, {conflicts} of them with shape and texture of different categories; share of the '
          f'shape among decisions for shape or texture:\n\n{shape_bias.table(tallies)}\n\n'
          f'shape_bias.png and shape_bias.json are in {args.out}')
