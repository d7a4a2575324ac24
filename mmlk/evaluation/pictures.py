"""Pictures of a report: confusion matrices, reliability diagrams, and images with their predictions."""
import os.path as osp
from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw

from mmlk._text import one_line
from mmlk.analysis.drawing import draw_annotation, font_of_size, legend
from mmlk.analysis.palette import COLOURS, plain
from mmlk.analysis.panels import LEGEND_ENTRIES, Instances, Palette, PredictedScene, distinct_palette, labels_in
from mmlk.datasets.images import as_loaded

from .calibration import BINS, Calibration
from .detection import Found
from .examples import Example

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WRITTEN = 12  # the most classes with the numbers in the cells of a confusion matrix
_NAMED = 80  # the most classes with their names beside the confusion matrix
_TILE, _GAP = 440, 8  # width of an image among the worst and best ones, and of the space between two, in pixels


def draw_confusion(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> 'Figure':
    """Draws a confusion matrix as the fractions of each row.

    Args:
        matrix: (R, C): counts by true class and predicted class.
        rows: Names of the true classes.
        columns: Names of the predicted classes.
    """
    from matplotlib.figure import Figure
    with np.errstate(invalid='ignore'):
        fractions = matrix / matrix.sum(1, keepdims=True)
    side = float(np.clip(2 + 0.45 * max(matrix.shape), 4.5, 14))
    figure = Figure(figsize=(side, side))
    axes = figure.subplots()
    image = axes.imshow(fractions, vmin=0, vmax=1, cmap='Blues')
    named = max(matrix.shape) <= _NAMED
    suffix = '' if named else ' (number of the class, from 0)'
    axes.set(xlabel=f'predicted{suffix}', ylabel=f'true{suffix}')
    if named:
        font = 9 if max(matrix.shape) <= 30 else 6
        axes.set_xticks(range(len(columns)), [plain(name) for name in columns], rotation=90, fontsize=font)
        axes.set_yticks(range(len(rows)), [plain(name) for name in rows], fontsize=font)
    if max(matrix.shape) <= _WRITTEN:
        for (row, column), value in np.ndenumerate(fractions):
            if not np.isnan(value):
                axes.text(column, row, f'{100 * value:.0f}', ha='center', va='center', fontsize=8,
                          color='white' if value > 0.5 else 'black')
    figure.colorbar(image, ax=axes, shrink=0.7, label='fraction of the true class')
    return figure


def draw_reliability(calibration: Calibration, what: str) -> 'Figure':
    """Draws the fraction of right predictions over their probability, and how many predictions there are in each bin.

    Args:
        calibration: Of a test.
        what: What the probabilities are of, for the axes.
    """
    from matplotlib.figure import Figure
    probability, right = calibration.means
    centres = (np.arange(BINS) + 0.5) / BINS
    figure = Figure(figsize=(5, 5.6))
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    figure.subplots_adjust(0.13, 0.09, 0.97, 0.94, hspace=0.08)
    upper.bar(centres, np.nan_to_num(right), 1 / BINS, color=COLOURS[5], edgecolor='white', label='right')
    upper.plot(probability, right, 'o', color=COLOURS[0], markersize=4, label='at the mean of the bin')
    upper.plot([0, 1], [0, 1], '--', color='grey', linewidth=1, label='as probable as right')
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel='fraction that is right',
              title=f'expected calibration error {100 * calibration.error:.2f} %')
    upper.legend(fontsize=8, loc='upper left')
    lower.bar(centres, calibration.count / max(1, calibration.count.sum()), 1 / BINS, color=COLOURS[5],
              edgecolor='white')
    lower.set(xlabel=what, ylabel='fraction of all')
    return figure


def draw_examples(examples: Sequence[Example], classes: Sequence[str], palette: Optional[Palette],
                  score: str) -> np.ndarray:
    """Draws one row for each image: the image, ground truth and prediction, below the names of the classes that occur.

    Args:
        examples: One or more.
        classes: Name of each label.
        palette: RGB colour of each label; None for colours that differ clearly.
        score: What the score of an image is.

    Returns:
        (H, W, 3), uint8, RGB.
    """
    if palette is None or len(palette) < len(classes):
        palette = distinct_palette(len(classes))
    palette = palette[:len(classes)]  # of a label beyond the classes nothing is drawn
    scenes = [_scene(example, score) for example in examples]
    named = legend(labels_in(scenes, len(classes))[:LEGEND_ENTRIES], classes, palette, 3 * _TILE + 4 * _GAP)
    return np.concatenate([*(_row(scene, classes, palette) for scene in scenes), named])


def _row(scene: PredictedScene, classes: Sequence[str], palette: Palette) -> np.ndarray:
    """Returns the picture of a scene, 3 * _TILE + 4 * _GAP pixels wide, with titles above it."""
    height, width = scene.image.shape[:2]
    scale = min(_TILE / width, 3 * _TILE / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    font = font_of_size(_TILE // 26)
    top = int(2 * font.size)
    row = Image.new('RGB', (3 * _TILE + 4 * _GAP, top + size[1]), 'white')
    draw = ImageDraw.Draw(row)
    named = [(scene.title, None), ('ground truth', scene.truth), ('prediction', scene.prediction)]
    for index, (title, annotation) in enumerate(named):
        left = _GAP + index * (_TILE + _GAP)
        if index == 1 and annotation is None:
            title = 'no ground truth'
        else:
            tile = scene.image if annotation is None else draw_annotation(scene.image, annotation, classes, palette)
            small = Image.fromarray(tile).resize(size, Image.Resampling.BILINEAR)
            row.paste(small, (left + (_TILE - size[0]) // 2, top))
        while len(title) > 8 and font.getlength(title) > _TILE:
            title = f'...{title[4:]}'
        draw.text((left + _TILE // 2, top // 2), title, 'black', font, 'mm')
    return np.asarray(row)


def _scene(example: Example, score: str) -> PredictedScene:
    title = one_line(f'{osp.basename(example.path)}, {score} {100 * example.score:.1f} %')
    try:
        image: Any = as_loaded(Path(example.path))
    except (OSError, ValueError):  # it is not on this disk, or of a format that only the pipeline reads
        image = None
    if image is None or image.shape[:2] != tuple(example.size):
        image = np.full((*example.size, 3), 224, np.uint8)
        title += ' (no image)'
    return PredictedScene(image, _annotation(example.truth, example.size),
                          _annotation(example.prediction, example.size), title)


def _annotation(part: Any, size: Tuple[int, int]) -> Any:
    """Returns what :mod:`mmlk.analysis.panels` draws."""
    if not isinstance(part, Found):
        return part
    from pycocotools import mask as coco
    masks = None
    if part.masks is not None:
        shown: List[np.ndarray] = [coco.decode(mask).astype(bool) for mask in part.masks]
        masks = np.stack(shown) if shown else np.zeros((0, *size), bool)
    boxes = part.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    return Instances(boxes, part.labels, masks, part.scores)
