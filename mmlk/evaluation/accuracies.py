"""Accuracies of any selection of the images of a test, from the figures of each image.

A selection is a weight for each image: how often it was drawn. With weights of 1 these are the accuracies that mmseg
and pycocotools compute of the whole test, before they are rounded.
"""
import numpy as np

from mmlk.evaluation.per_image import DetectionFigures, SegmentationFigures

#: Points of recall at which pycocotools reads the precision.
RECALLS = np.linspace(0, 1, 101)
_NUMBERS = 1 << 21  # in an array of a number for each selection and prediction


def mean_iou(figures: SegmentationFigures, weights: np.ndarray) -> np.ndarray:
    """Returns the mean IoU of selections of images. A class that a selection has neither in its labels nor in its
    predictions is left out of the mean, as mmseg does.

    Args:
        figures: Of N images.
        weights: (R, N): how often each image counts in each selection.

    Returns:
        (R,), float64, in percent; nan for a selection without any labelled pixel.
    """
    weights = np.asarray(weights, np.float64)
    intersection = weights @ figures.intersection
    union = weights @ (figures.predicted + figures.labelled - figures.intersection)
    return 100 * _mean(intersection / np.where(union > 0, union, 1), union > 0)


def average_precision(figures: DetectionFigures, weights: np.ndarray, area: str = 'all') -> np.ndarray:
    """Returns the average precision of selections of images: the mean over classes, thresholds of IoU and 101 points of
    recall, as pycocotools computes it. A class without an object in a selection is left out.

    An image that is drawn w times counts as w images with the same predictions. Only if two predictions of one class in
    one image have the same score, the order differs from that of a dataset that holds the image w times: here the
    copies of a prediction follow each other.

    Args:
        figures: Of N images.
        weights: (R, N): how often each image counts in each selection.
        area: One of ``figures.ranges``.

    Returns:
        (R,), float64, in percent; nan for a selection without any object.
    """
    place = figures.ranges.index(area)
    weights = np.asarray(weights, np.float64)
    objects = weights @ figures.objects[place]
    precision = np.zeros_like(objects)
    by_class = np.argsort(figures.label, kind='stable')
    bounds = np.searchsorted(figures.label[by_class], np.arange(objects.shape[1] + 1))
    for label, (first, last) in enumerate(zip(bounds, bounds[1:])):
        found = by_class[first:last]
        found = found[np.argsort(-figures.score[found], kind='stable')]
        ignored = figures.ignored[place, found]
        right = figures.matched[place, found] & ~ignored
        step = max(1, _NUMBERS // max(1, len(found)))
        for start in range(0, len(weights), step):
            part = slice(start, start + step)
            drawn = weights[part][:, figures.image[found]]
            precision[part, label] = _class_precision(drawn, right, ignored, objects[part, label])
    return 100 * _mean(precision, objects > 0)


def _class_precision(drawn: np.ndarray, right: np.ndarray, ignored: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Returns the mean precision of one class over the thresholds of IoU and the points of recall.

    Precision is largest where a prediction is right, and recall grows there alone. So both are computed at those
    predictions only, which are few.

    Args:
        drawn: (R, M): how often each prediction counts, by falling score.
        right: (M, T), bool.
        ignored: (M, T), bool.
        objects: (R,): number of objects.
    """
    total = np.zeros(len(drawn))
    every = drawn.cumsum(axis=1)
    for hits, left_out in zip(right.T, ignored.T):
        places, without = np.flatnonzero(hits), np.flatnonzero(left_out)
        if not len(places):
            continue
        true = drawn[:, places].cumsum(axis=1)
        counted = every[:, places]
        if len(without):
            before = np.pad(drawn[:, without].cumsum(axis=1), ((0, 0), (1, 0)))
            counted = counted - before[:, np.searchsorted(without, places)]
        precision = true / (counted + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or any higher
        reached = np.searchsorted(RECALLS, true / np.where(objects > 0, objects, 1)[:, None], side='right')
        total += (best * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
    return total / right.shape[1]


def known_mean(values: np.ndarray) -> float:
    """Returns the mean of the values that are not nan, as mmseg and pycocotools compute it; nan if all are."""
    there = values[~np.isnan(values)]
    return float(np.mean(there)) if there.size else float('nan')


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Returns the mean of the counted values of each row; nan for a row without one."""
    number = counted.sum(axis=1)
    return np.where(number, np.where(counted, values, 0).sum(axis=1) / np.maximum(number, 1), np.nan)
