"""The report a paper needs: models side by side, every number with where it comes from.

    mmlk compare configs/upernet_{replknet31b,swin-b,resnet101}_ade20k.py  # what is known, and measured
    mmlk compare configs/studies/kernel_size.yml --train  # one of RepLKNet's guidelines, on demo scenes
    mmlk compare configs/studies/backbones.yml --data-root DIR --budget 700 --seeds 0 1

Configs are named one by one, or listed by a study of configs/studies/. Published results come from configs/metafiles;
parameters and multiply-adds are counted, latency, memory and effective receptive fields are measured. With --train or
--budget each config is trained with each seed, and tested; differences of their accuracy have intervals over images and
seeds, and p-values. The folder of results has report.md, report.html, report.json, table.tex (booktabs) with
references.bib, and results.png, erf.png and predictions.png; with --corruptions robustness.png, and with --cam cam.png.
The same command goes on where it was cut off.
"""
import argparse
import logging
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from mmlk.cli import robustness
from mmlk.cli.options import (DEVICE_HELP, add_config_options, add_device, check_device, check_minimum, command_line,
                              fail)

if TYPE_CHECKING:
    from mmlk.studies.compare import ComparedModel, Run, Study

PARTS = ('backbone', 'model')  # of mmlk.analysis.latency, which imports PyTorch
STEPS = ('latency', 'erf', 'predictions')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='configs, or studies (.yml) that list some')
    parser.add_argument('--train', action='store_true', help="train by the configs' own schedules, and test")
    parser.add_argument('--budget', type=int, metavar='N', help='train for N iterations (epochs, where the configs '
                        'count in epochs), the schedules shortened or stretched, and test')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='one training each (default: 0)')
    parser.add_argument('--checkpoints', nargs='+', default=[], metavar='CONFIG=CHECKPOINT',
                        help='test these in place of training; CONFIG is the name of a config, without .py')
    parser.add_argument('--data-root', type=Path, metavar='DIR', help="the data's folder, in the layout that the "
                        'configs expect')
    parser.add_argument('--classes', metavar='FILE', help='class names, one a line in the order of the labels, or '
                        'their number (default: classes.txt in --data-root, if it is there; else as the configs say)')
    parser.add_argument('--shape', metavar='WIDTHxHEIGHT', help='of the image for multiply-adds and latency (default: '
                        'that of the published counts, else the training crop, where the configs agree)')
    parser.add_argument('--part', choices=PARTS, default='model', help='what latency is of (%(default)s)')
    parser.add_argument('--turns', type=int, default=5, help='how often latency is timed (%(default)s)')
    parser.add_argument('--erf-images', metavar='DIR', help="folder of images; scikit-image's photographs by default")
    parser.add_argument('--erf-num', type=int, default=5, metavar='N', help='at most so many of them (%(default)s)')
    parser.add_argument('--erf-size', type=int, default=1024, help='side that they are resized to (%(default)s)')
    parser.add_argument('--num', type=int, default=4, help='test images in predictions.png (%(default)s)')
    parser.add_argument('--skip', nargs='+', choices=STEPS, default=[], help='leave out')
    parser.add_argument('--reference', metavar='NAME', help='the model that the others are compared with: the name of '
                        'its config, without .py, or its name in the study (default: the first)')
    parser.add_argument('--resamples', type=int, default=2000, metavar='N', help='of the test images, from which '
                        'intervals of differences follow (%(default)s)')
    parser.add_argument('--cam', action='store_true', help='class activation maps of what is trained or tested, on the '
                        'images of predictions.png; needs pytorch-grad-cam: pip install grad-cam')
    robustness.add_arguments(parser, folder=False)
    add_device(parser, f'of all but training and testing, which take a GPU where there is one {DEVICE_HELP}')
    parser.add_argument('--out', type=Path, metavar='DIR', help='folder of the results (default: '
                        "work_dirs/compare, or that of the study's name)")
    add_config_options(parser)


def check(args: argparse.Namespace) -> None:
    """Set the defaults that depend on other options; end the program with one message if an option is wrong."""
    check_minimum(args, budget=1, turns=1, erf_num=1, erf_size=8, num=1, resamples=100)
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        fail(f"--seeds must be different and not negative, got {' '.join(map(str, args.seeds))}")
    args.device = check_device(args.device)
    args.train = args.train or args.budget is not None
    args.plan = robustness.read_plan(args)
    for name in ('corruptions', 'cam'):
        if getattr(args, name) and not (args.train or args.checkpoints):
            fail(f'--{name} needs weights: give --train, --budget or --checkpoints')
    if args.cam and find_spec('pytorch_grad_cam') is None:
        fail('--cam needs pytorch-grad-cam, which is not installed: pip install grad-cam')
    args.out = args.out or Path('work_dirs', Path(args.configs[0]).stem if len(args.configs) == 1 else 'compare')


def read_entries(args: argparse.Namespace) -> Tuple[List['ComparedModel'], Optional['Study']]:
    """The models to compare, with the options put into their configs; and the study, if that is what was given.

    Raises:
        ValueError: they cannot be compared, or an option does not fit them.
    """
    from mmlk._types import scoped_name
    from mmlk.cli.prepare import find_checkpoint, read_config
    from mmlk.studies import compare
    studies = [compare.read_study(Path(path)) for path in args.configs if path.endswith(('.yml', '.yaml'))]
    named = [(Path(path).stem, path) for path in args.configs if not path.endswith(('.yml', '.yaml'))]
    named += [(name, path) for study in studies for name, path in study.configs.items()]
    classes = args.classes
    if classes is None and args.data_root is not None and (args.data_root / 'classes.txt').is_file():
        classes = str(args.data_root / 'classes.txt')
    names = None if classes is None else compare.read_classes(classes)
    checkpoints = dict(pair.partition('=')[::2] for pair in args.checkpoints)
    entries = []
    for name, path in named:
        entry = compare.ComparedModel(name, path, read_config(path, args.cfg_options),
                                      checkpoints.pop(Path(path).stem, None))
        entries.append(entry)
    if checkpoints:
        raise ValueError(f"--checkpoints: there is no config {', '.join(checkpoints)} among those compared")
    for entry in entries:
        compare.use_data(entry.cfg, args.data_root, names)
    compare.check_models(entries)
    if args.reference is not None:
        args.reference = find_reference(entries, args.reference)
    for entry in entries:
        if args.budget is not None:
            compare.use_budget(entry.cfg, args.budget)
        entry.checkpoint = entry.checkpoint and find_checkpoint(entry.checkpoint)
        start = entry.cfg.model.backbone.get('init_cfg') or {}
        if args.train and not entry.checkpoint and scoped_name(start) == 'mmlk.Pretrained':
            find_checkpoint(start['checkpoint'])  # now, not when the runs before it have taken hours
    units = {entry.path: compare.training_length(entry.cfg)[1] for entry in entries
             if args.train and not entry.checkpoint}
    if args.budget is not None and len(set(units.values())) > 1:
        raise ValueError('one budget needs one unit: '
                         + '; '.join(f'{path} counts in {unit}' for path, unit in units.items()))
    return entries, studies[0] if len(studies) == 1 and len(args.configs) == 1 else None


def find_reference(entries: Sequence['ComparedModel'], given: str) -> str:
    """The name of the model that ``--reference`` means.

    Raises:
        ValueError: it is none of those compared.
    """
    for entry in entries:
        if given in (entry.name, entry.stem):
            return entry.name
    raise ValueError(f"--reference: {given} is none of the models compared: {', '.join(one.name for one in entries)}")


def find_runs(entries: Sequence['ComparedModel'], args: argparse.Namespace) -> List['Run']:
    """The runs that the options ask for, in the state that an earlier call left them in."""
    from mmlk.studies import compare
    runs = []
    for entry in entries:
        seeds = [None] if entry.checkpoint else args.seeds if args.train else []
        for seed in seeds:
            folder = 'checkpoint' if seed is None else f'seed{seed}'
            runs.append(compare.Run(entry, seed, args.out / 'runs' / entry.stem / folder))
            runs[-1].open()
    return runs


def run(args: argparse.Namespace) -> None:
    # A training that this process started ends with it, also when it is told to terminate.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        write_report(args)
    finally:
        signal.signal(signal.SIGTERM, before)


def write_report(args: argparse.Namespace) -> None:
    """Do all that the options ask for, from reading the configs to writing the report."""
    check(args)
    from mmengine.logging import MMLogger

    from mmlk.analysis.complexity import parse_size
    from mmlk.cli.prepare import preflight
    from mmlk.datasets.images import find_images, packaged_photographs, read_image
    from mmlk.studies import compare, contents, differences, inside, report, steps
    from mmlk.studies.display import CONSOLE
    from mmlk.weights import WeightsError
    MMLogger.get_current_instance().setLevel(logging.WARNING)  # the loader's account of every checkpoint
    try:
        entries, study = read_entries(args)
        runs = find_runs(entries, args)
        if args.reference is not None and args.reference not in {run.entry.name for run in runs}:
            raise ValueError(f'--reference: {args.reference} is neither trained nor tested; give --train or its '
                             'checkpoint in --checkpoints')
        size = parse_size(args.shape) if args.shape else compare.default_size(entries, steps.MIM)
        paths = []
        if 'erf' not in args.skip:
            paths = find_images(args.erf_images) if args.erf_images else packaged_photographs()
            paths = paths[:args.erf_num]
        for path in paths:
            read_image(path, 8)
    except ValueError as error:
        fail(str(error))
    for entry in {run.entry.name: run.entry for run in runs}.values():
        preflight(entry.cfg, compare.SPLITS if args.train else ('test', ))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f'--out {args.out}: {error}')
    try:
        counted = steps.count_all(entries, size)
        steps.check_files([run.entry for run in runs if not run.finished])
        steps.carry_out(runs)
        if args.plan:
            steps.corrupt(runs, robustness.given_options(args), args.plan, args.corruption_seed or 0)
    except (ValueError, compare.RunFailed) as error:
        fail(str(error))

    for name in contents.PICTURES:
        (args.out / name).unlink(missing_ok=True)  # of an earlier call, of other models perhaps
    title, caption, cites, references = contents.describe_all(entries, study, args)
    columns, cells = compare.accuracy(entries, runs, steps.MIM)
    accuracies = list(columns)
    lines = [report.StudyRow(entry.name, entry.path, cells[entry.name], cites[entry.name]) for entry in entries]
    contents.add_counts(lines, columns, counted, size)
    if args.plan:
        inside.add_robustness(lines, columns, entries, runs, args)
    if 'latency' not in args.skip:
        contents.add_latency(lines, columns, entries, size, args)
    if 'erf' not in args.skip:
        contents.add_erf(lines, columns, entries, runs, paths, args)
    predictions = ''
    if 'predictions' not in args.skip:
        try:
            predictions = contents.draw_predictions(entries, runs, args)
        except WeightsError as error:
            fail(str(error))
    if args.cam:
        inside.draw_cams(entries, runs, args)
    facts = dict(command=command_line(), versions=compare.versions(), machine=compare.machine(),
                 study=study and dict(finding=study.finding, source=study.source),
                 settings={key: value if isinstance(value, (int, list, dict, type(None))) else str(value)
                           for key, value in vars(args).items()},
                 runs=[dict(model=run.entry.name, seed=run.seed, folder=str(run.folder), **run.state) for run in runs])
    made = report.StudyReport(title, lines, columns, caption, facts,
                              differences.differences(entries, runs, args.reference, args.resamples),
                              differences.agreements(lines, columns, accuracies))
    contents.write(made, study, references, runs, predictions, args)
    CONSOLE.print(f'\n{made.markdown()}\n\nreport.html, report.md, report.json, table.tex, references.bib and '
                  f'pictures: {args.out}')
