"""How robust a model is: its performance on corrupted images, as a mean and relative to clean images.

With the performance P(c, s) on corruption c of severity s (Benchmarking Robustness in Object Detection, Michaelis et
al., arXiv:1907.07484):

- mPC, the mean performance under corruption, is the mean over the corruptions of the mean of P(c, s) over s;
- rPC, the relative performance under corruption, is mPC divided by the performance on clean images.
"""
import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Union

from mmlk._files import whole
from mmlk._text import markdown_table
from mmlk.datasets.corruptions import CATEGORIES, CORRUPTIONS, SEVERITIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Which severities of which corruptions are tested.
Plan = Dict[str, List[int]]
CLEAN = 'clean'
_MAIN = ('mIoU', 'bbox_mAP', 'segm_mAP', 'accuracy/top1')
_COLOURS = dict(zip(CATEGORIES, ('#0072B2', '#D55E00', '#009E73', '#CC79A7')))


def plan(names: Sequence[str], severities: Sequence[int] = SEVERITIES,
         noise_severities: Optional[Sequence[int]] = None) -> Plan:
    """Returns the severities of each corruption, in the order of ``CORRUPTIONS``.

    Args:
        names: Corruptions, categories, or ``'all'``.
        severities: Those of each corruption.
        noise_severities: Those of the noise corruptions, if they differ. SegFormer (arXiv:2105.15203) tests them at
            1, 2 and 3 only.

    Raises:
        ValueError: There is no such corruption or severity.
    """
    known = {'all': CORRUPTIONS, **CATEGORIES, **{name: (name, ) for name in CORRUPTIONS}}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no corruption {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    wrong = [level for level in (*severities, *(noise_severities or ())) if level not in SEVERITIES]
    if wrong:
        raise ValueError(f"severities are 1 to 5, got {', '.join(map(str, wrong))}")
    chosen = {corruption for name in names for corruption in known[name]}
    if noise_severities and not chosen & set(CATEGORIES['noise']):
        raise ValueError('severities of the noise are given, and no noise is among the corruptions')
    return {name: sorted({*(noise_severities if noise_severities and name in CATEGORIES['noise'] else severities)})
            for name in CORRUPTIONS if name in chosen}


class Results:
    """What was measured of one checkpoint under one config, kept in a file that grows with each test.

    Args:
        path: JSON file, read if it is there.
        fingerprint: By name, what the results depend on.

    Raises:
        ValueError: The file has another fingerprint, or is not such a file.
    """

    def __init__(self, path: Union[str, Path], fingerprint: Mapping[str, str]):
        self.path, self.fingerprint = Path(path), dict(fingerprint)
        self.tests: Dict[str, Dict[str, Any]] = {}
        if not self.path.is_file():
            return
        try:
            content = json.loads(self.path.read_text(encoding='utf-8'))
            known, self.tests = dict(content['fingerprint']), dict(content['tests'])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path} is not a file of results ({error}); remove it, and all is tested anew') from error
        changed = [name for name in {**known, **self.fingerprint} if known.get(name) != self.fingerprint.get(name)]
        if changed:
            raise ValueError(f'the results in {path} are of another {", ".join(changed)}. Take another folder with '
                             '--corruptions-dir, or remove the file to test all anew')

    def find(self, corruption: str, severity: int = 0) -> Optional[Dict[str, Any]]:
        """Returns the metrics of a test, or None if there was none."""
        return self.tests.get(_key(corruption, severity))

    def add(self, metrics: Mapping[str, Any], corruption: str, severity: int = 0) -> None:
        """Adds those metrics of a test that are numbers."""
        self.tests[_key(corruption, severity)] = _numbers(metrics)

    def save(self) -> None:
        """Writes the file, which is there as a whole at any time."""
        content = dict(fingerprint=self.fingerprint, tests=self.tests)
        _write(self.path, json.dumps(content, indent=1, allow_nan=False) + '\n')


def _key(corruption: str, severity: int) -> str:
    return corruption if corruption == CLEAN else f'{corruption} {severity}'


def _numbers(metrics: Mapping[str, Any]) -> Dict[str, Optional[float]]:
    """Returns the metrics that are numbers, as those of Python; None for NaN, which JSON does not have."""
    numbers = {}
    for name, value in metrics.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        numbers[name] = number if math.isfinite(number) else None
    return numbers


@dataclass
class Robustness:
    """The robustness by one metric.

    Args:
        metric: Its name.
        clean: The performance on clean images.
        performance: That on corrupted images, by corruption and severity.
    """
    metric: str
    clean: float
    performance: Dict[str, Dict[int, float]]

    @property
    def means(self) -> Dict[str, float]:
        """The mean over the severities of each corruption."""
        return {name: _mean(values.values()) for name, values in self.performance.items()}

    @property
    def categories(self) -> Dict[str, float]:
        """The mean over the corruptions of each category, of those that were tested."""
        means = self.means
        tested = {kind: [means[name] for name in names if name in means] for kind, names in CATEGORIES.items()}
        return {kind: _mean(values) for kind, values in tested.items() if values}

    @property
    def mpc(self) -> float:
        """Mean performance under corruption, in the unit of the metric."""
        return _mean(self.means.values())

    @property
    def rpc(self) -> Optional[float]:
        """mPC relative to the performance on clean images; None if that is not positive."""
        return self.mpc / self.clean if self.clean > 0 else None

    def summary(self) -> Dict[str, Any]:
        """Returns the figures for a JSON file."""
        return dict(clean=self.clean, mPC=self.mpc, rPC=self.rpc, categories=self.categories, corruptions=self.means)


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def robustness(results: Results, tested: Plan) -> List[Robustness]:
    """Returns the robustness by each metric that all tests of a plan have a number for.

    A COCO metric is -1 where there is nothing to find, as of small objects in a set without them; it is left out. mmdet
    gives no metrics where a detector finds nothing in the whole set; its precision is 0 then.

    Raises:
        ValueError: A test is missing.
    """
    def of(corruption: str, severity: int = 0) -> Dict[str, Any]:
        found = results.find(corruption, severity)
        if found is None:
            raise ValueError(f'{results.path} has no test of {_key(corruption, severity)}')
        return found

    clean = of(CLEAN)
    tests = {name: {severity: of(name, severity) for severity in severities} for name, severities in tested.items()}
    every = [clean, *(test for levels in tests.values() for test in levels.values())]
    names = dict.fromkeys(name for test in every for name in test)
    metrics = [name for name in names if all(test.get(name, 0) not in (None, -1) for test in every)]
    return [Robustness(metric, clean.get(metric, 0), {
        name: {severity: test.get(metric, 0) for severity, test in levels.items()} for name, levels in tests.items()})
        for metric in metrics]


def main_metrics(found: Sequence[Robustness]) -> List[Robustness]:
    """Returns those by which models are compared: mIoU, mAP of boxes and masks, or top-1; otherwise the first."""
    return [one for one in found if one.metric.endswith(_MAIN)] or list(found[:1])


def table(one: Robustness) -> str:
    """Returns the performance by one metric in Markdown, with mPC and rPC below."""
    severities = sorted({severity for levels in one.performance.values() for severity in levels})
    rows = []
    for name, levels in one.performance.items():
        rows.append([name, *(_show(levels[severity]) if severity in levels else '' for severity in severities),
                     _show(one.means[name])])
    head, rule = [one.metric, *map(str, severities), 'mean'], ['---', *['---:'] * (len(severities) + 1)]
    relative = 'not defined' if one.rpc is None else f'{100 * one.rpc:.1f} %'
    return (f'{markdown_table(head, rows, rule)}\n\n'
            f'clean {_show(one.clean)}, mPC {_show(one.mpc)}, rPC {relative}')


def _show(value: float) -> str:
    return f'{value:.2f}' if abs(value) >= 1 else f'{value:.3f}'  # mIoU is in percent, mAP a share


def write_report(folder: Union[str, Path], found: Sequence[Robustness], facts: Mapping[str, Any]) -> List[Path]:
    """Writes ``robustness.json`` and ``robustness.csv`` of all metrics, and pictures of the main ones.

    The pictures are ``robustness.png``, with all corruptions, and one for each corruption, as ``fog.png``.

    Args:
        folder: Created if it does not exist.
        found: The robustness by each metric.
        facts: What the JSON file says besides.

    Returns:
        The files.
    """
    folder = Path(folder)
    tests = {one.metric: {CLEAN: one.clean, **one.performance} for one in found}
    content = dict(facts, summary={one.metric: one.summary() for one in found}, performance=tests)
    paths = [folder / 'robustness.json', folder / 'robustness.csv', folder / 'robustness.png']
    _write(paths[0], json.dumps(content, indent=1, allow_nan=False) + '\n')
    with whole(str(paths[1])) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['metric', 'corruption', 'severity', 'performance'])
        for one in found:
            writer.writerow([one.metric, CLEAN, 0, one.clean])
            writer.writerows([one.metric, name, severity, value] for name, levels in one.performance.items()
                             for severity, value in levels.items())
            writer.writerows([[one.metric, 'mPC', '', one.mpc], [one.metric, 'rPC', '', one.rpc]])
    main = main_metrics(found)
    if not main:
        return paths[:2]
    _save(plot_all(main), paths[2])
    for name in main[0].performance:
        paths.append(folder / f'{name}.png')
        _save(plot_corruption(main, name), paths[-1])
    return paths


def _write(path: Path, text: str) -> None:
    with whole(str(path)) as temporary:
        Path(temporary).write_text(text, encoding='utf-8')


def _save(figure: 'Figure', path: Path) -> None:
    with whole(str(path)) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_corruption(main: Sequence[Robustness], corruption: str) -> 'Figure':
    """Performance over the severity of one corruption, from 0, the clean image; a line for each metric."""
    from matplotlib.figure import Figure

    from mmlk.analysis.palette import looks
    figure = Figure(figsize=(4.8, 3.4), layout='constrained')
    axes = figure.subplots()
    for one, look in zip(main, looks(one.metric for one in main).values()):
        levels = {0: one.clean, **one.performance[corruption]}
        axes.plot(list(levels), list(levels.values()), marker=look.marker, color=look.colour, label=one.metric)
    axes.set(title=corruption, xlabel='severity (0: clean)', xticks=[0, *SEVERITIES])
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def plot_all(main: Sequence[Robustness]) -> 'Figure':
    """A panel for each metric with a bar for each corruption, the mean, and a dot for each severity."""
    from matplotlib.figure import Figure

    from mmlk.analysis.palette import add_panels
    names = list(main[0].performance)
    rows = -(-len(main) // 2)
    figure = Figure(figsize=(6.4 * min(2, len(main)), 0.4 + rows * (1.4 + 0.3 * len(names))), layout='constrained')
    for axes, one in zip(add_panels(figure, len(main)), main):
        for place, name in enumerate(names):
            kind = next(kind for kind, members in CATEGORIES.items() if name in members)
            axes.barh(place, one.means[name], color=_COLOURS[kind], alpha=0.6)
            for severity, value in one.performance[name].items():
                axes.plot(value, place, 'o', markersize=2 + severity, color=_COLOURS[kind], markeredgecolor='white',
                          markeredgewidth=0.5)
        relative = '' if one.rpc is None else f', rPC {100 * one.rpc:.1f} %'
        axes.axvline(one.clean, color='black', label=f'clean {_show(one.clean)}')
        axes.axvline(one.mpc, color='black', linestyle='--', label=f'mPC {_show(one.mpc)}{relative}')
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel(one.metric)
        axes.grid(axis='x', alpha=0.3)
        axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    figure.supxlabel('bars: the mean over severities; dots: the severities, the larger the more severe', fontsize=9)
    return figure
