"""The folder of a report: a page, the same as JSON, tables as CSV, pictures, and figures of each image."""
import csv
import json
import math
import os.path as osp
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Union

import numpy as np
from PIL import Image

from mmlk._files import whole

from . import page
from .calibration import BINS, Calibration
from .detection import OVERLAP, SCORE, DetectionReport
from .examples import Example
from .per_image import PerImage
from .pictures import draw_confusion, draw_examples, draw_reliability
from .segmentation import SegmentationResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mmlk.analysis.panels import Palette

_KINDS = {'': 'Pixels', '_bbox': 'Boxes', '_segm': 'Masks'}
#: Every file that a report may have, so that those of an earlier report do not stay beside a new one.
FILES = ('report.html', 'report.json', 'worst.jpg', 'best.jpg', *(
    f'{name}{kind}.{suffix}' for kind in _KINDS for name, suffix in (
        ('per_image', 'npz'), ('classes', 'csv'), ('confusion_matrix', 'csv'), ('confusion_matrix', 'png'),
        ('calibration', 'csv'), ('calibration', 'png'))))


@dataclass
class Part:
    """What a report says of pixels, of boxes or of masks.

    Args:
        suffix: Of the names of its files: ``''``, ``'_bbox'`` or ``'_segm'``.
        metrics: Figures over all classes, 0 to 1.
        classes: Figures of each class, 0 to 1, by name.
        numbers: How many pixels or objects each class has.
        counted: What is counted: pixels or objects.
        confusion: (R, C), int64.
        rows: Names of the true classes of ``confusion``.
        columns: Names of its predicted classes.
        calibration: None if there are no probabilities.
        uncalibrated: Why there are none.
        probability: What is called a probability in the reliability diagram.
        figures: Of each image.
        notes: What a reader must know of the figures.
    """
    suffix: str
    metrics: Dict[str, float]
    classes: Dict[str, np.ndarray]
    numbers: np.ndarray
    counted: str
    confusion: np.ndarray
    rows: List[str]
    columns: List[str]
    calibration: Optional[Calibration]
    uncalibrated: str
    probability: str
    figures: PerImage
    notes: str

    @property
    def names(self) -> List[str]:
        """Of the classes."""
        return self.figures.classes

    @property
    def bins(self) -> List[Dict[str, float]]:
        """The bins of the calibration; the mean probability and the fraction that is right are nan in empty bins."""
        if self.calibration is None:
            return []
        return [dict(above=index / BINS, to=(index + 1) / BINS, count=int(count), probability=float(probability),
                     right=float(right))
                for index, (count, probability, right) in enumerate(zip(self.calibration.count,
                                                                        *self.calibration.means))]

    def facts(self) -> Dict[str, Any]:
        """Returns what a JSON says of it."""
        per_class = [dict([('class', name), *((key, float(values[index])) for key, values in self.classes.items()),
                           (self.counted, int(self.numbers[index]))]) for index, name in enumerate(self.names)]
        calibration = dict(missing=self.uncalibrated) if self.calibration is None else dict(
            error=self.calibration.error, bins=self.bins)
        return dict(metrics=self.metrics, classes=per_class, calibration=calibration)


def of_segmentation(results: SegmentationResults) -> Part:
    """Returns what a report says of a segmentor."""
    names = results.figures.classes
    other = bool(results.confusion[:, -1].any())
    return Part(
        '', results.metrics, results.classes, results.totals[2], 'pixels',
        results.confusion if other else results.confusion[:, :-1], names, [*names, *(['other'] if other else [])],
        results.calibration, results.uncalibrated, 'probability of the predicted class', results.figures,
        'Pixels whose label is ignored are not counted, and their edge is a contour as that of the image. Acc is that '
        'of mmseg, which is the recall. Means leave out classes that do not occur. Boundary IoU is that of the pixels '
        'within 2 % of the diagonal from a contour (arXiv:2103.16562), summed over the images as IoU is.')


def of_detection(report: DetectionReport) -> List[Part]:
    """Returns what a report says of the boxes and the masks of a detector."""
    parts = []
    for kind, results in report.kinds.items():
        names = results.figures.classes
        threshold = results.figures.thresholds[0]
        notes = ('AP and AR are those of pycocotools with at most 100 predictions of each image and class; small is an '
                 'area below 32 x 32 pixels, large one of at least 96 x 96. In the confusion matrix, predictions with '
                 f'a score of at least {SCORE} find the object that they overlap most, with an IoU of at least '
                 f'{OVERLAP}. The calibration is that of the score: a prediction is right if it matches an object of '
                 f'its class with an IoU of at least {threshold:g}.')
        if results.contours is not None:
            notes += (' Boundary IoU (arXiv:2103.16562, 2 % of the diagonal) is the mean over the masks that find an '
                      'object of their class in the confusion matrix.')
        parts.append(Part(f'_{kind}', results.metrics, results.classes, results.figures.objects[0].sum(0), 'objects',
                          results.confusion, [*names, 'background'], [*names, 'background'], results.calibration, '',
                          'score', results.figures, notes))
    return parts


def write(folder: Union[str, Path], task: str, parts: Sequence[Part], worst: Sequence[Example],
          best: Sequence[Example], about: Dict[str, str], palette: Optional['Palette'] = None) -> Path:
    """Writes a report. Files of an earlier report in the folder are removed first.

    Args:
        folder: Created if it does not exist.
        task: ``'segmentation'`` or ``'detection'``.
        parts: One or more, of the same images and classes.
        worst: Images to show.
        best: Images to show.
        about: What was tested, by name, such as the config.
        palette: RGB colour of each label.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    score = 'mean IoU' if task == 'segmentation' else 'F-score'
    for part in parts:
        part.figures.save(folder / f'per_image{part.suffix}.npz')
        _write_tables(folder, part)
        _save(draw_confusion(part.confusion, part.rows, part.columns), folder / f'confusion_matrix{part.suffix}.png',
              bbox_inches='tight')
        if part.calibration is not None:
            _save(draw_reliability(part.calibration, part.probability), folder / f'calibration{part.suffix}.png')
    for name, examples in (('worst', worst), ('best', best)):
        if examples:
            picture = Image.fromarray(draw_examples(examples, parts[0].names, palette, score))
            with whole(str(folder / f'{name}.jpg')) as temporary:
                picture.save(temporary, 'JPEG', quality=88)
    with whole(str(folder / 'report.html')) as temporary:
        Path(temporary).write_text(_page(folder, task, parts, score, about), encoding='utf-8')
    facts = dict(task=task, about=about, images=len(parts[0].figures.images), score_of_images=score,
                 **{name: [dict(image=one.path, score=one.score) for one in examples]
                    for name, examples in (('worst', worst), ('best', best))},
                 results={part.suffix[1:] or 'pixels': part.facts() for part in parts},
                 files=sorted(name for name in FILES if (folder / name).exists() or name == 'report.json'))
    with whole(str(folder / 'report.json')) as temporary:
        Path(temporary).write_text(json.dumps(_without_nan(facts), indent=1, allow_nan=False), encoding='utf-8')
    return folder / 'report.html'


def _write_tables(folder: Path, part: Part) -> None:
    _write_csv(folder / f'classes{part.suffix}.csv', ['class', *part.classes, part.counted],
               zip(part.names, *part.classes.values(), part.numbers))
    _write_csv(folder / f'confusion_matrix{part.suffix}.csv', ['true / predicted', *part.columns],
               ([name, *row] for name, row in zip(part.rows, part.confusion)))
    if part.bins:
        _write_csv(folder / f'calibration{part.suffix}.csv', list(part.bins[0]), (one.values() for one in part.bins))


def _write_csv(path: Path, head: Sequence[str], rows: Any) -> None:
    """Writes a table. A cell without a value is empty."""
    with whole(str(path)) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for row in rows:
            writer.writerow(['' if isinstance(cell, float) and math.isnan(cell) else cell for cell in row])


def _save(figure: 'Figure', path: Path, **options: Any) -> None:
    with whole(str(path)) as temporary:
        figure.savefig(temporary, **options)


def _without_nan(value: Any) -> Any:
    """Returns nested facts with None for nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _percent(value: float) -> str:
    return '-' if math.isnan(value) else f'{100 * value:.2f}'


def _page(folder: Path, task: str, parts: Sequence[Part], score: str, about: Dict[str, str]) -> str:
    """Returns the page, with the pictures of the folder inside."""
    shown: List[str] = [page.table(['Tested', ''], about.items())]
    for part in parts:
        notes = f'Percentages, and numbers of {part.counted}. {part.notes}'
        shown += [page.heading(_KINDS[part.suffix]), page.paragraph(notes),
                  page.table(list(part.metrics), [[_percent(value) for value in part.metrics.values()]])]
        rows = ([name, *(_percent(values[index]) for values in part.classes.values()), part.numbers[index]]
                for index, name in enumerate(part.names))
        shown += [page.table(['class', *part.classes, part.counted], rows),
                  page.figure(folder / f'confusion_matrix{part.suffix}.png',
                              f'Confusion matrix: percentages of each true class ({part.counted}).')]
        if part.calibration is not None:
            shown.append(page.figure(folder / f'calibration{part.suffix}.png',
                                     f'Reliability diagram: {BINS} bins of the {part.probability}.'))
        else:
            shown.append(page.paragraph(f'No calibration error: {part.uncalibrated}.'))
    for name, title in (('worst', 'Worst images'), ('best', 'Best images')):
        if (folder / f'{name}.jpg').exists():
            shown += [page.heading(title), page.figure(folder / f'{name}.jpg', f'{title} by {score}.')]
    return page.document(f'Test of {osp.basename(about.get("Config", "")) or "a model"}: {task}', *shown,
                         style='table:first-of-type td:last-child { text-align: left; overflow-wrap: anywhere; }')
