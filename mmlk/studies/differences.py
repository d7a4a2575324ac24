"""The differences of a comparison: which are real, by the figures of images that its tests wrote and by its seeds."""
import itertools
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Type

import numpy as np

from mmlk.evaluation import statistics
from mmlk.evaluation.accuracies import average_precision, mean_iou
from mmlk.evaluation.per_image import DetectionFigures, PerImage, SegmentationFigures
from mmlk.studies.compare import METRICS, ComparedModel, Run
from mmlk.studies.report import Agreement, Column, Difference, StudyRow


class Figures(NamedTuple):
    """How an accuracy follows from figures of images.

    Args:
        file: Name of the file in the folder of a test's report.
        kind: Class of the figures.
        accuracy: Computes it, in percent.
        rounding: How far the accuracy that the toolbox prints may be from it, in percent.
    """
    file: str
    kind: Type[PerImage]
    accuracy: Callable[[Any, np.ndarray], np.ndarray]
    rounding: float


#: By the names of :data:`mmlk.studies.compare.METRICS`. mmseg counts in float32 and prints two digits of percents, and
#: mmdet prints one.
FIGURES = {'mIoU': Figures('per_image.npz', SegmentationFigures, mean_iou, 0.01),
           'box AP': Figures('per_image_bbox.npz', DetectionFigures, average_precision, 0.0501),
           'mask AP': Figures('per_image_segm.npz', DetectionFigures, average_precision, 0.0501)}


class Measured(NamedTuple):
    """The accuracies of one model.

    Args:
        accuracies: Of its runs.
        images: Names of the images, if their figures are known.
        classes: Names of the classes, likewise.
        lacking: Why the figures of images are not known; may be empty.
    """
    accuracies: statistics.Accuracies
    images: Sequence[str] = ()
    classes: Sequence[str] = ()
    lacking: str = ''


def read_figures(metric: str, runs: Sequence[Run]) -> List[PerImage]:
    """Returns the figures of images of a model's runs, and checks that they give the accuracy of the test.

    Raises:
        ValueError: There are none, or they are not of this test. The message says why.
    """
    how, (key, factor) = FIGURES[metric], METRICS[runs[0].entry.task][metric]
    found: List[PerImage] = []
    for run in runs:
        path = run.report / how.file
        if not path.is_file():
            why = run.no_report or ('it was tested before there were reports, and its checkpoint is gone'
                                    if 'report' not in run.state else f'{path} is not there')
            raise ValueError(f'no interval over images, because {why}')
        one = how.kind.load(path)
        value, tested = float(how.accuracy(one, np.ones((1, len(one.images))))[0]), run.state['metrics'][key] * factor
        if not abs(value - tested) <= how.rounding:
            raise ValueError(f'no interval over images, because {path} gives {metric} {value:.3f} and the test printed '
                             f'{tested:.3f}')
        if found and (one.images, one.classes) != (found[0].images, found[0].classes):
            raise ValueError('no interval over images, because its runs were tested on different images or classes')
        found.append(one)
    return found


def measure(metric: str, runs: Sequence[Run], resamples: int) -> Measured:
    """Returns the accuracies of a model's runs, in resamples of the images too if the figures of images are known."""
    key, factor = METRICS[runs[0].entry.task][metric]
    try:
        figures = read_figures(metric, runs)
    except ValueError as error:
        return Measured(statistics.Accuracies([run.state['metrics'][key] * factor for run in runs]), lacking=str(error))
    found = statistics.over_images(figures, FIGURES[metric].accuracy, resamples)
    return Measured(found, figures[0].images, figures[0].classes)


def differences(entries: Sequence[ComparedModel], runs: Sequence[Run], reference: Optional[str],
                resamples: int) -> List[Difference]:
    """Compares each model that was tested here with one of them.

    Args:
        entries: The models.
        runs: Their finished runs.
        reference: Name of the model that the others are compared with; None for the first that was tested.
        resamples: Number of resamples of the images.

    Returns:
        One difference for each metric and model, whose p-values are corrected for the number of models.
    """
    made: List[Difference] = []
    by_model = {entry.name: [run for run in runs if run.entry is entry] for entry in entries}
    for metric, (key, _) in METRICS[entries[0].task].items():
        tested = {name: own for name, own in by_model.items()
                  if own and all(key in run.state['metrics'] for run in own)}
        if len(tested) < 2 or (reference or next(iter(tested))) not in tested:
            continue
        name = reference or next(iter(tested))
        first = measure(metric, tested.pop(name), resamples)
        compared = {model: _paired(first, measure(metric, own, resamples)) for model, own in tested.items()}
        known = {model: p for model, (one, other, _) in compared.items()
                 if (p := statistics.p_value(one, other)) is not None}
        corrected = dict(zip(known, statistics.holm(list(known.values()))))
        for model, (one, other, note) in compared.items():
            value = float(np.mean(other.values) - np.mean(one.values))
            found = statistics.interval(one, other)
            if found is None:
                made.append(Difference(metric, model, name, value, note=note))
                continue
            seeds = (len(other.values), len(one.values)) if 'seeds' in found.over else ()
            made.append(Difference(metric, model, name, value, (found.low, found.high), corrected[model],
                                   one.images if 'images' in found.over else 0, seeds, note))
    return made


def _paired(first: Measured, second: Measured) -> Tuple[statistics.Accuracies, statistics.Accuracies, str]:
    """Returns the accuracies of two models, without resamples if these are not of the same images, and what the
    interval of their difference does not cover."""
    one, other = first.accuracies, second.accuracies
    notes = list(dict.fromkeys(found.lacking for found in (second, first) if found.lacking))
    if not notes and (first.images, first.classes) != (second.images, second.classes):
        notes.append('no interval over images, because the models were tested on different images or classes')
    elif not notes and one.images < statistics.FEWEST:
        notes.append(f'no interval over images, because {one.images} are too few: it needs {statistics.FEWEST}')
    if notes:
        one, other = statistics.Accuracies(one.values), statistics.Accuracies(other.values)
    if min(len(one.values), len(other.values)) < 2:
        notes.append('no interval over seeds, because that needs two trainings of each of both models')
    elif not np.ptp(one.values) and not np.ptp(other.values):
        notes.append('no interval over seeds, because no training differs from another')
    return one, other, '; '.join(notes)


def agreements(lines: Sequence[StudyRow], columns: Mapping[str, Column], accuracies: Sequence[str]) -> List[Agreement]:
    """Compares the rankings of the models by what was published, and by what was measured.

    Args:
        lines: The rows of the table.
        columns: The columns of the table by key.
        accuracies: Keys of the columns that are accuracies.

    Returns:
        One agreement for each published and other accuracy that have at least three models in common.
    """
    def means(key: str) -> Dict[str, float]:
        return {line.name: line.cells[key].mean for line in lines if key in line.cells}

    published = [key for key in accuracies if key.endswith(', published')]
    found = []
    for first, second in itertools.product(published, [key for key in accuracies if key not in published]):
        ranking = statistics.kendall(means(first), means(second))
        if ranking is not None:
            found.append(Agreement(columns[first].title, columns[second].title, *ranking))
    return found
