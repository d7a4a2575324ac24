"""The report a paper needs: models side by side, every number with where it comes from.

    python tools/compare.py configs/upernet_{replknet31b,swin-b,resnet101}_ade20k.py  # what is known, and measured
    python tools/compare.py configs/studies/kernel_size.yml --train  # one of RepLKNet's guidelines, on demo scenes
    python tools/compare.py configs/studies/backbones.yml --data-root DIR --budget 700 --seeds 0 1

Configs are named one by one, or listed by a study of configs/studies/. Published results come from configs/metafiles;
parameters and multiply-adds are counted, latency, memory and effective receptive fields are measured. With --train or
--budget each config is trained with each seed, and tested. The folder of results has report.md, report.json, table.tex
(booktabs) with references.bib, and results.png, erf.png and predictions.png. The same command goes on where it was cut
off.
"""
import argparse
import itertools
import json
import logging
import shlex
import signal
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import mmlk
from mmlk._types import scoped_name, type_name
from mmlk.analysis import erf
from mmlk.analysis.complexity import build_on_meta, count, parse_size
from mmlk.analysis.latency import PARTS
from mmlk.analysis.panels import predict_some, side_by_side
from mmlk.datasets.audit import audit
from mmlk.datasets.images import find_images, packaged_photographs, read_image
from mmlk.engine.cli import add_config_options, fail, find_checkpoint, preflight, read_config
from mmlk.engine.network import in_channels
from mmlk.studies import compare, report
from mmlk.weights import WeightsError

MIM = Path(mmlk.__file__).parent / '.mim'
STEPS = ('latency', 'erf', 'predictions')
CONSOLE = Console(highlight=False, markup=False, soft_wrap=True)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='of all but training and testing, which take a GPU where there is one (%(default)s)')
    parser.add_argument('--out', type=Path, metavar='DIR', help='folder of the results (default: '
                        "work_dirs/compare, or that of the study's name)")
    add_config_options(parser)
    args = parser.parse_args()
    for option, least in (('budget', 1), ('turns', 1), ('erf_num', 1), ('erf_size', 8), ('num', 1)):
        value = getattr(args, option)
        if value is not None and value < least:
            parser.error(f"--{option.replace('_', '-')} must be at least {least}, got {value}")
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds must be different and not negative, got {' '.join(map(str, args.seeds))}")
    try:
        torch.empty(0, device=args.device)
    except (AssertionError, RuntimeError) as error:
        parser.error(f'--device {args.device}: {str(error).splitlines()[0]}')
    args.train = args.train or args.budget is not None
    return args


def read_entries(args):
    """What is compared, with the options put into the configs, and the study, if it is one."""
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


def find_runs(entries, args):
    """The runs that are asked for, as an earlier call left them."""
    runs = []
    for entry in entries:
        seeds = [None] if entry.checkpoint else args.seeds if args.train else []
        for seed in seeds:
            folder = 'checkpoint' if seed is None else f'seed{seed}'
            runs.append(compare.Run(entry, seed, args.out / 'runs' / entry.stem / folder))
            runs[-1].open()
    return runs


def progress(*columns):
    return Progress(TextColumn('{task.description}', markup=False), BarColumn(), *columns, TimeElapsedColumn(),
                    console=CONSOLE, disable=not sys.stdout.isatty())


def track(items, description):
    """A loop with a bar of progress."""
    with progress(MofNCompleteColumn()) as bar:
        yield from bar.track(items, len(items), description=description)


def check_files(entries):
    """End the program when a file of the data cannot be used; every dataset is read once."""
    seen = []
    with progress(MofNCompleteColumn()) as bar:
        for entry in entries:
            named = [dict(dataset, pipeline=None) for split in compare.SPLITS
                     for _, dataset in compare.datasets(entry.cfg, split)]
            if named in seen:
                continue
            seen.append(named)
            reports = audit(entry.cfg, track=lambda items, total, where: bar.track(
                items, total, description=f'reading {where.partition(".")[0]}'))
            bad = [f'{kind}: {line}' for found in reports for kind, lines in found.problems.items()
                   if kind in compare.FATAL for line in lines]
            if bad:
                more = f'\n  and {len(bad) - 5} more' if len(bad) > 5 else ''
                fail(f'the data of {entry.path} cannot be used as it is:\n  ' + '\n  '.join(bad[:5]) + more
                     + '\nMend or remove these files; tools/check_data.py lists all of them')


def count_all(entries, size):
    """Multiply-adds and parameters of each model, which shows at once that every one of them can be built."""
    counted = {}
    for entry in track(entries, 'counting'):
        try:
            counted[entry.name] = count(build_on_meta(entry.cfg), size, in_channels(entry.cfg))
        except NotImplementedError as error:
            CONSOLE.print(f'{entry.name} cannot be counted: {error}')
        except Exception as error:  # a foreign model's own
            fail(f'{entry.path}: the model cannot be built: {type(error).__name__}: {error}')
    return counted


def carry_out(runs, tools):
    """Train and test what is left to do."""
    left = [run for run in runs if not run.finished]
    if len(left) < len(runs):
        CONSOLE.print(f'{len(runs) - len(left)} of {len(runs)} runs are finished already.')
    with progress(TextColumn('{task.completed}/{task.total}'), TimeRemainingColumn()) as bar:
        whole = bar.add_task('all runs', total=len(left), visible=len(left) > 1)
        for run in left:
            task = bar.add_task(run.label, total=None)

            def tick(step, done, total):
                bar.update(task, description=f'{run.label}: {step}', completed=done, total=total)

            if not sys.stdout.isatty():
                step = 'testing' if run.checkpoint else 'training and testing'
                CONSOLE.print(f'{run.label}: {step}; logs are in {run.folder}')
            run.carry_out(tools, tick)
            bar.remove_task(task)
            bar.advance(whole)
            took = f"trained in {run.state['train_seconds']:.0f} s, " if run.seed is not None else ''
            found = [f'{metric} {run.state["metrics"][key] * factor:.2f}' for metric, (key, factor) in
                     compare.METRICS[run.entry.task].items() if key in run.state['metrics']]
            CONSOLE.print(f"{run.label}: {took}tested in {run.state['test_seconds']:.0f} s: {', '.join(found)}")


def add_counts(lines, columns, counted, size):
    columns.update(parameters=report.Column('Params (M)', 2, 1e6), macs=report.Column('FLOPs (G)', 2, 1e9))
    how = (f'mmlk.analysis.complexity, merged, without the auxiliary head, multiply-adds of one image of '
           f'{size[1]}x{size[0]} (width x height)')
    for line in lines:
        if line.name in counted:
            found = counted[line.name]
            line.cells['parameters'] = report.Cell((found.parameters, ), 'counted here', how)
            line.cells['macs'] = report.Cell((found.macs, ), 'counted here', how)


def add_latency(lines, columns, entries, size, args):
    """Latency and memory; measured anew when any model, size or machine is another."""
    device = torch.device(args.device)
    columns.update(latency=report.Column('Latency (ms)', 1, 1e-3), memory=report.Column('Memory (MiB)', 0, 2**20))
    from mmlk.ops.benchmark import describe
    where = describe(device)
    key = dict(models={entry.name: repr(entry.cfg.model) for entry in entries}, part=args.part, size=size,
               turns=args.turns, machine=where)

    def compute():
        with progress(MofNCompleteColumn()) as bar:
            task = bar.add_task('latency', total=None)
            return compare.compare_latency(
                entries, args.part, size, args.turns, device,
                lambda text, total: bar.update(task, advance=1, total=total, description=text))

    rows = compare.remembered(args.out / 'latency.json', key, compute)
    how = (f'mmlk.analysis.latency, inference of the {args.part}, merged where it has branches, fp32, one image of '
           f'{size[1]}x{size[0]} (width x height), random weights, median of {args.turns} turns, peak memory beyond '
           f'the weights, on {where}')
    for line in lines:
        row = rows[line.name]
        if row.get('failed'):
            CONSOLE.print(f"{line.name}: latency was not measured: {row['failed']}")
            continue
        line.cells['latency'] = report.Cell((row['median_s'], ), 'measured here', how)
        if row['peak_memory_bytes'] is not None:
            line.cells['memory'] = report.Cell((row['peak_memory_bytes'], ), 'measured here', how)


def add_erf(lines, columns, entries, runs, paths, args):
    """Area ratios, and the picture."""
    columns.update({f'erf{t:g}': report.Column(f'ERF {t:.0%} (%)', 1, 0.01) for t in erf.THRESHOLDS})
    fields = {}
    for line, entry in zip(lines, entries):
        checkpoint = next((run.checkpoint for run in runs if run.entry is entry), None)
        try:
            found, fields[line.name] = compare.measure_model_erf(
                entry, checkpoint, paths, args.erf_size, args.device, args.out / 'erf' / entry.stem,
                lambda images: track(images, f'{line.name}: receptive field'))
        except ValueError as error:
            CONSOLE.print(f'{line.name}: no effective receptive field: {error}')
            continue
        weights = 'random weights' if checkpoint is None else 'the weights tested here' if entry.checkpoint else (
            f'the weights trained here, seed {args.seeds[0]}')
        how = f'mmlk.analysis.erf, last stage, {weights}, images: {found["images"]} of {args.erf_size}x{args.erf_size}'
        for threshold in erf.THRESHOLDS:
            ratio = found['squares'][f'{threshold:g}']['area_ratio']
            line.cells[f'erf{threshold:g}'] = report.Cell((ratio, ), 'measured here', how)
    if fields:
        erf.heat_maps(fields).savefig(args.out / 'erf.png', dpi=110)


def draw_predictions(entries, runs, args):
    """The pictures of the models that there are weights of; nothing when there are none."""
    predictions, classes, palette = {}, None, None
    some = [(entry, next((run.checkpoint for run in runs if run.entry is entry), None)) for entry in entries]
    for entry, checkpoint in track([pair for pair in some if pair[1]], 'predictions'):
        predictions[entry.name], classes, palette = predict_some(entry.cfg, checkpoint, args.num, device=args.device)
    if predictions:
        side_by_side(predictions, classes, palette).savefig(args.out / 'predictions.png', dpi=110)


def describe_all(entries, study, args):
    """The title and the sentences of the caption, with what they cite."""
    references = report.References(MIM / 'configs' / 'references.yml')
    cites = {entry.name: references.of(entry.cited_names) for entry in entries}
    first = entries[0]
    _, dataset = next(compare.datasets(first.cfg, 'test'))
    title = study.title if study else f'Comparison of {len(entries)} models'
    caption = [(f'{first.task.capitalize()} on {first.data}',
                references.of([type_name(dataset), first.data]) if first.data != 'demo scenes' else [])]
    methods = references.of(dict.fromkeys(name for entry in entries for name in entry.method_names))
    if methods:
        names = [references.entries[key]['name'] for key in methods]
        caption.append((f"Under {', '.join(names)}", methods))
    if args.train and len(args.seeds) > 1:
        caption.append((f'Mean ± sample standard deviation over {len(args.seeds)} seeds', []))
    if 'erf' not in args.skip:
        caption.append(('ERF t: area of the smallest centred square with more than t of the effective receptive '
                        'field, in percent of the image',
                        references.of(['effective receptive field', 'mmlk.RepLKNet'])))
    return title, caption, cites, references


def write(made, study, references, runs, args):
    """report.md, report.json, table.tex and references.bib, and the plot of results."""
    latex = made.latex()
    keys = report.cited(latex)
    accuracies = [key for key in made.shown if key.startswith(tuple(
        metric for metrics in compare.METRICS.values() for metric in metrics))]
    if accuracies:
        figure = report.plot_study(made, accuracies[0], ('parameters', 'macs', 'latency'))
        figure.savefig(args.out / 'results.png', dpi=110)
    pictures = [name for name in ('results.png', 'predictions.png', 'erf.png') if (args.out / name).is_file()]
    text = [f'# {made.title}', '']
    if study:
        text += [f'What the paper found: {study.finding} ({study.source})', '']
    text += ['. '.join(sentence for sentence, _ in made.caption) + '.', '', made.markdown(), '']
    if runs:
        text += ['| run | metrics | trained in | on |', '| --- | --- | --- | --- |']
        for run in runs:
            figures = ', '.join(f'{name} {run.state["metrics"][key] * factor:.2f}' for name, (key, factor) in
                                compare.METRICS[run.entry.task].items() if key in run.state['metrics'])
            took = '–'
            if run.seed is not None:
                took = f"{run.state['train_seconds']:.0f} s{' since it was resumed' * run.state['resumed']}"
            text.append(f"| {run.label} | {figures} | {took} | {run.state['machine']} |")
        text.append('')
    text += itertools.chain.from_iterable((f'![{name}]({name})', '') for name in pictures)
    text += ['Configs: ' + ', '.join(f'`{line.config}` ({line.name})' for line in made.lines) + '.', '',
             f"Made by `{made.facts['command']}`, with "
             + ', '.join(f'{name} {version}' for name, version in made.facts['versions'].items())
             + '. Everything unrounded: report.json; for a paper: table.tex (booktabs) and references.bib '
             + f"({', '.join(keys)}).", '']
    (args.out / 'report.md').write_text('\n'.join(text), encoding='utf-8')
    (args.out / 'report.json').write_text(json.dumps(made.to_dict(), indent=1, ensure_ascii=False) + '\n',
                                          encoding='utf-8')
    (args.out / 'table.tex').write_text(latex, encoding='utf-8')
    (args.out / 'references.bib').write_text(references.bibtex(keys), encoding='utf-8')


def main():
    args = parse_args()
    args.out = args.out or Path('work_dirs', Path(args.configs[0]).stem if len(args.configs) == 1 else 'compare')
    from mmengine.logging import MMLogger
    MMLogger.get_current_instance().setLevel(logging.WARNING)  # the loader's account of every checkpoint
    try:
        entries, study = read_entries(args)
        runs = find_runs(entries, args)
        size = parse_size(args.shape) if args.shape else compare.default_size(entries, MIM)
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
    counted = count_all(entries, size)
    check_files([run.entry for run in runs if not run.finished])
    try:
        carry_out(runs, Path(__file__).resolve().parent)
    except compare.RunFailed as error:
        fail(str(error))

    title, caption, cites, references = describe_all(entries, study, args)
    columns, cells = compare.accuracy(entries, runs, MIM)
    lines = [report.StudyRow(entry.name, entry.path, cells[entry.name], cites[entry.name]) for entry in entries]
    add_counts(lines, columns, counted, size)
    if 'latency' not in args.skip:
        add_latency(lines, columns, entries, size, args)
    if 'erf' not in args.skip:
        add_erf(lines, columns, entries, runs, paths, args)
    if 'predictions' not in args.skip:
        try:
            draw_predictions(entries, runs, args)
        except WeightsError as error:
            fail(str(error))
    facts = dict(command=shlex.join(['python', *sys.argv]), versions=compare.versions(), machine=compare.machine(),
                 study=study and dict(finding=study.finding, source=study.source),
                 settings={key: value if isinstance(value, (int, list, dict, type(None))) else str(value)
                           for key, value in vars(args).items()},
                 runs=[dict(model=run.entry.name, seed=run.seed, folder=str(run.folder), **run.state) for run in runs])
    made = report.StudyReport(title, lines, columns, caption, facts)
    write(made, study, references, runs, args)
    CONSOLE.print(f'\n{made.markdown()}\n\nreport.md, report.json, table.tex, references.bib and pictures: {args.out}')


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a training ends with it
    main()
