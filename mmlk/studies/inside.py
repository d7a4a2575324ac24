"""What the trained models of a comparison do beyond their accuracy: on corrupted images, and where they look.

``args`` are the options of ``mmlk compare`` everywhere.
"""
import json
import statistics
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Sequence, Tuple

from mmlk.analysis import cam
from mmlk.analysis.palette import legend_columns, looks, most_lines, wrapped
from mmlk.analysis.panels import test_files
from mmlk.engine.network import build_network
from mmlk.evaluation.robustness import CLEAN, Plan
from mmlk.studies import compare, report
from mmlk.studies.display import CONSOLE, track
from mmlk.weights import WeightsError, load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The performance on clean images and, by corruption, the mean over severities: one value for each run, in percent.
Performance = Dict[str, List[float]]


def add_robustness(lines: Sequence[report.StudyRow], columns: Dict[str, report.Column],
                   entries: Sequence[compare.ComparedModel], runs: Sequence[compare.Run], args: Namespace) -> None:
    """Add mPC and rPC of the models that were tested on corrupted images, and write robustness.png.

    Args:
        lines: Of the table, changed in place.
        columns: Of the table, changed in place.
        entries: The models.
        runs: The finished runs.
        args: ``plan`` is what was tested, severities by corruption.
    """
    seed = args.corruption_seed or 0
    how = f"mean over {_described(args.plan)}{f', random seed {seed}' if seed else ''}, by the weights of {{}}"
    found: Dict[str, Performance] = {}
    for line, entry in zip(lines, entries):
        own = [run for run in runs if run.entry is entry and run.corrupted(args.plan, seed)]
        for metric, (key, factor) in compare.METRICS[entry.task].items():
            tests, seeds = [], []
            for run in own:
                one = _of_run(run, key, factor)
                if one is None:
                    CONSOLE.print(f'{run.label}: the tests on corrupted images have no {metric}')
                    continue
                tests.append(one)
                seeds.append(str(run.seed))
            if not tests:
                continue
            weights = (f'checkpoint {entry.checkpoint}' if own[0].seed is None else
                       f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}")
            columns[f'mPC of {metric}'] = report.Column(f'mPC of {metric} (%)', 2)
            columns[f'rPC of {metric}'] = report.Column(f'rPC of {metric} (%)', 1)
            means = [statistics.fmean([one[name] for name in args.plan]) for one in tests]
            line.cells[f'mPC of {metric}'] = report.Cell(tuple(means), 'measured here', how.format(weights))
            if all(one[CLEAN] > 0 for one in tests):
                line.cells[f'rPC of {metric}'] = report.Cell(
                    tuple(100 * mean / one[CLEAN] for mean, one in zip(means, tests)), 'measured here',
                    f'mPC over the accuracy on clean images, {how.format(weights)}')
            if metric == next(iter(compare.METRICS[entry.task])):
                found[entry.name] = {name: [one[name] for one in tests] for name in (CLEAN, *args.plan)}
    if found:
        metric = next(iter(compare.METRICS[entries[0].task]))
        plot_robustness(found, f'{metric} (%)').savefig(args.out / 'robustness.png', dpi=110)


def _described(plan: Plan) -> str:
    """Returns the corruptions with their severities, as text."""
    alike: Dict[Tuple[int, ...], List[str]] = {}
    for name, severities in plan.items():
        alike.setdefault(tuple(severities), []).append(name)
    return '; '.join(f"{', '.join(names)} of severity {', '.join(map(str, severities))}"
                     for severities, names in alike.items())


def _of_run(run: compare.Run, key: str, factor: float) -> Optional[Dict[str, float]]:
    """Returns the performance of one run in percent, or None if a test had no such metric."""
    content = json.loads((run.corruptions / 'robustness.json').read_text(encoding='utf-8'))
    if key not in content['summary']:
        return None
    summary = content['summary'][key]
    return {name: value * factor for name, value in {CLEAN: summary['clean'], **summary['corruptions']}.items()}


def plot_robustness(found: Mapping[str, Performance], metric: str) -> 'Figure':
    """Draws the performance of each model on clean images and on each corruption: a marker for the mean over the runs,
    and a line from the lowest to the highest of them.

    Args:
        found: The performance by the name of the model. All have the same corruptions.
        metric: What it is called, with the unit.
    """
    from matplotlib.figure import Figure
    names = list(next(iter(found.values())))
    labels = [wrapped(model, 40) for model in found]
    columns = legend_columns(labels, 84, 3)
    height = 1 + 0.2 * most_lines(labels) * -(-len(labels) // columns) + len(names) * max(0.4, 0.13 * len(found))
    figure = Figure(figsize=(8, height), layout='constrained')
    axes = figure.subplots()
    step, handles = 0.8 / len(found), []
    for index, (model, look) in enumerate(looks(found).items()):
        places = [place + (index - (len(found) - 1) / 2) * step for place in range(len(names))]
        values = [found[model][name] for name in names]
        axes.hlines(places, list(map(min, values)), list(map(max, values)), color=look.colour, alpha=0.5)
        handles += axes.plot([statistics.fmean(runs) for runs in values], places, look.marker, color=look.colour)
    for place in range(1, len(names)):
        axes.axhline(place - 0.5, color='grey', linewidth=0.5, alpha=0.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(f'{metric}, mean over severities')
    axes.grid(axis='x', alpha=0.3)
    figure.legend(handles, labels, loc='outside upper center', ncols=columns, frameon=False)
    return figure


def draw_cams(entries: Sequence[compare.ComparedModel], runs: Sequence[compare.Run], args: Namespace) -> None:
    """Write cam.png: class activation maps of the models that have weights, side by side on the same test images.

    Of each image, the class is explained that is most prominent by the first model that finds one. A model that does
    not find the class has the bare image. What goes wrong is printed, and the others are drawn.
    """
    targets: Dict[Path, str] = {}
    rows: Dict[Path, cam.CamRow] = {}
    for entry, checkpoint in track(compare.with_weights(entries, runs), 'class activation maps'):
        try:
            network = build_network(entry.cfg)
            load(network, checkpoint)
            subject = cam.subject_from_config(entry.cfg, network).to(args.device)
            paths = test_files(entry.cfg, args.num)
        except (ValueError, WeightsError) as error:
            CONSOLE.print(f'{entry.name}: no class activation maps: {error}')
            continue
        for path in paths:
            try:
                sample = subject.sample(path)
                row = rows.setdefault(path, cam.CamRow(sample.image, path.name, {}))
                row.overlays[entry.name] = sample.image
                label = subject.label(targets[path]) if path in targets else None
                explained = cam.explain(subject, sample, [subject.default_layer], label=label)
            except ValueError as error:
                CONSOLE.print(f'{entry.name}: no class activation map of {path}: {error}')
                continue
            if explained is None or explained[0].region is None and explained[0].boxes is None:
                continue
            choice, maps = explained
            targets.setdefault(path, subject.classes[choice.label])
            row.overlays[entry.name] = cam.overlay_heat(sample, maps[subject.default_layer], choice)
    if rows:
        for path, target in targets.items():
            rows[path].title = f'{path.name}: {target}'
        cam.grid(list(rows.values())).savefig(args.out / 'cam.png', dpi=110)
