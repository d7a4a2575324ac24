"""What the report of a study contains: counts, latency, effective receptive fields, predictions, citations; its files.

``args`` are the options of ``mmlk compare`` everywhere.
"""
import itertools
import json
from argparse import Namespace
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from rich.progress import MofNCompleteColumn

from mmlk._text import markdown_table
from mmlk._types import type_name
from mmlk.analysis import erf
from mmlk.analysis.complexity import Complexity
from mmlk.analysis.drawing import draw_annotation
from mmlk.analysis.panels import LEGEND_ENTRIES, PredictedScene, distinct_palette, predict_some, side_by_side
from mmlk.evaluation import page
from mmlk.evaluation.slider import SCRIPT, STYLE, Scene, slider
from mmlk.ops.benchmark import describe
from mmlk.studies import compare, report
from mmlk.studies.display import CONSOLE, progress, track
from mmlk.studies.steps import MIM

#: The pictures that a report may have, with their captions.
PICTURES = {'results.png': 'Accuracy', 'robustness.png': 'Accuracy on corrupted images',
            'predictions.png': 'Predictions', 'cam.png': 'Class activation maps',
            'erf.png': 'Effective receptive fields'}


def add_counts(lines: Sequence[report.StudyRow], columns: Dict[str, report.Column], counted: Mapping[str, Complexity],
               size: Tuple[int, int]) -> None:
    """Add the columns of parameters and multiply-adds, and a cell to the lines of all models that were counted.

    Args:
        lines: Of the table, changed in place.
        columns: Of the table, changed in place.
        counted: By the names of the models.
        size: Height and width in pixels of the image that they were counted for.
    """
    columns.update(parameters=report.Column('Params (M)', 2, 1e6), macs=report.Column('FLOPs (G)', 2, 1e9))
    how = (f'mmlk.analysis.complexity, merged, without the auxiliary head, multiply-adds of one image of '
           f'{size[1]}x{size[0]} (width x height)')
    for line in lines:
        if line.name in counted:
            found = counted[line.name]
            line.cells['parameters'] = report.Cell((found.parameters, ), 'counted here', how)
            line.cells['macs'] = report.Cell((found.macs, ), 'counted here', how)


def add_latency(lines: Sequence[report.StudyRow], columns: Dict[str, report.Column],
                entries: Sequence[compare.ComparedModel], size: Tuple[int, int], args: Namespace) -> None:
    """Add latency and memory. What an earlier call measured is used if the models, the size and the machine are the
    same."""
    device = torch.device(args.device)
    columns.update(latency=report.Column('Latency (ms)', 1, 1e-3), memory=report.Column('Memory (MiB)', 0, 2**20))
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


def add_erf(lines: Sequence[report.StudyRow], columns: Dict[str, report.Column],
            entries: Sequence[compare.ComparedModel], runs: Sequence[compare.Run], paths: Sequence[Path],
            args: Namespace) -> None:
    """Add the area ratios of the effective receptive fields on the images at ``paths``, and write erf.png."""
    columns.update({f'erf{t:g}': report.Column(f'ERF {t:.0%} (%)', 1, 0.01) for t in erf.THRESHOLDS})
    fields = {}
    for line, entry in zip(lines, entries):
        own = [run for run in runs if run.entry is entry]
        checkpoint = own[0].checkpoint if own else None
        if own and checkpoint is None:
            CONSOLE.print(f'{line.name}: no effective receptive field: the checkpoint that was tested is gone')
            continue
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


def draw_predictions(entries: Sequence[compare.ComparedModel], runs: Sequence[compare.Run], args: Namespace) -> str:
    """Write predictions.png, of the models that have weights; nothing is written if none has.

    Returns:
        The part of report.html that shows them behind a slider; empty if there are none.

    Raises:
        WeightsError: a checkpoint does not fit its model.
    """
    predictions, classes, palette = {}, None, None
    for entry, checkpoint in track(compare.with_weights(entries, runs), 'predictions'):
        predictions[entry.name], classes, palette = predict_some(entry.cfg, checkpoint, args.num, device=args.device)
    if not predictions:
        return ''
    side_by_side(predictions, classes, palette).savefig(args.out / 'predictions.png', dpi=110)
    if palette is None or len(palette) < len(classes):
        palette = distinct_palette(len(classes))
    return slider(_scenes(predictions, classes, palette), list(zip(classes, palette))[:LEGEND_ENTRIES])


def _scenes(predictions: Mapping[str, Sequence[PredictedScene]], classes: Sequence[str],
            palette: Sequence[Tuple[int, int, int]]) -> List[Scene]:
    """Returns the scenes with their views: the image, the ground truth and the prediction of each model."""
    scenes = []
    for shown in zip(*predictions.values()):
        first = shown[0]
        annotations = {'ground truth': first.truth,
                       **{name: scene.prediction for name, scene in zip(predictions, shown)}}
        views = {name: draw_annotation(first.image, annotation, classes, palette)
                 for name, annotation in annotations.items() if annotation is not None}
        scenes.append(Scene(first.title, dict(image=first.image, **views)))
    return scenes


def describe_all(entries: Sequence[compare.ComparedModel], study: Optional[compare.Study], args: Namespace) -> tuple:
    """The words of the report.

    Returns:
        The title; the sentences of the caption, each with the keys that it cites; the keys that each model's name
        cites; the references.
    """
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


def write(made: report.StudyReport, study: Optional[compare.Study], references: report.References,
          runs: Sequence[compare.Run], predictions: str, args: Namespace) -> None:
    """Write report.md, report.html, report.json, table.tex, references.bib and results.png into ``args.out``.

    ``predictions`` is what :func:`draw_predictions` returned.
    """
    latex = made.latex()
    keys = report.cited(latex)
    accuracies = [key for key in made.shown if key.startswith(tuple(
        metric for metrics in compare.METRICS.values() for metric in metrics))]
    if accuracies:
        figure = report.plot_study(made, accuracies[0], ('parameters', 'macs', 'latency'))
        figure.savefig(args.out / 'results.png', dpi=110)
    pictures = [name for name in PICTURES if (args.out / name).is_file()]
    before = [f'What the paper found: {study.finding} ({study.source})'] if study else []
    before.append('. '.join(sentence for sentence, _ in made.caption) + '.')
    tested = _run_rows(runs)
    configs = ', '.join(f'`{line.config}` ({line.name})' for line in made.lines)
    versions = ', '.join(f'{name} {version}' for name, version in made.facts['versions'].items())
    after = [f'Configs: {configs}.',
             f"Made by `{made.facts['command']}`, with {versions}. Everything unrounded: report.json; for a paper: "
             f"table.tex (booktabs) and references.bib ({', '.join(keys)})."]
    text = [f'# {made.title}', '', *itertools.chain.from_iterable((sentence, '') for sentence in before),
            made.markdown(), '']
    if runs:
        text += [markdown_table(tested[0], tested[1:]), '']
    text += itertools.chain.from_iterable((f'![{name}]({name})', '') for name in pictures)
    text += itertools.chain.from_iterable((sentence, '') for sentence in after)
    (args.out / 'report.md').write_text('\n'.join(text), encoding='utf-8')
    (args.out / 'report.html').write_text(_page(made, before, tested, predictions, after, args.out), encoding='utf-8')
    (args.out / 'report.json').write_text(json.dumps(made.to_dict(), indent=1, ensure_ascii=False) + '\n',
                                          encoding='utf-8')
    (args.out / 'table.tex').write_text(latex, encoding='utf-8')
    (args.out / 'references.bib').write_text(references.bibtex(keys), encoding='utf-8')


def _run_rows(runs: Sequence[compare.Run]) -> List[List[str]]:
    """Returns the table of the runs, with its head."""
    rows = [['run', 'metrics', 'trained in', 'on']]
    for run in runs:
        figures = ', '.join(f'{name} {run.state["metrics"][key] * factor:.2f}' for name, (key, factor) in
                            compare.METRICS[run.entry.task].items() if key in run.state['metrics'])
        took = '–'
        if run.seed is not None:
            took = f"{run.state['train_seconds']:.0f} s{' since it was resumed' * run.state['resumed']}"
        rows.append([run.label, figures, took, run.state['machine']])
    return rows


def _page(made: report.StudyReport, before: Sequence[str], tested: Sequence[Sequence[str]], predictions: str,
          after: Sequence[str], folder: Path) -> str:
    """Returns report.html: what report.md has, with its pictures inside, and the predictions behind a slider."""
    head, *rows = made.rows()
    parts = [*map(_paragraph, before), page.table(head, rows),
             _paragraph(*(f'[{number}] {source}' for number, source in enumerate(made.sources, 1)))]
    differences = made.difference_rows()
    if differences:
        parts += ['<h2>Differences</h2>', page.table(differences[0], differences[1:])]
    parts += [_paragraph(f'{remark}.') for remark in made.remarks()]
    for name, caption in PICTURES.items():
        if name != 'predictions.png' and (folder / name).is_file():  # these are behind the slider
            parts.append(page.figure(folder / name, caption))
    if predictions:
        parts += ['<h2>Predictions</h2>', predictions]
    if len(tested) > 1:
        parts += ['<h2>Runs</h2>', page.table(tested[0], tested[1:])]
    return page.document(made.title, *parts, *map(_paragraph, after), style=STYLE, script=SCRIPT if predictions else '')


def _paragraph(*lines: str) -> str:
    return f"<p>{'<br>'.join(map(page.text, lines))}</p>"
