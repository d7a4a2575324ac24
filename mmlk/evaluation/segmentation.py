"""What a test of a segmentor reports: counts of pixels, from which the accuracies of classes and images follow."""
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from .accuracies import known_mean
from .boundary import boundary, distance
from .calibration import Calibration, PixelProbabilities
from .examples import Example, Examples
from .gathering import SummingMetric
from .per_image import SegmentationFigures


def accuracies(intersection: np.ndarray, predicted: np.ndarray, labelled: np.ndarray) -> Dict[str, np.ndarray]:
    """Computes what mmseg's ``IoUMetric`` computes of counts of pixels, and names it as there, in float64.

    Args:
        intersection: (..., K): pixels of the class that are predicted as the class.
        predicted: (..., K): pixels that are predicted as the class.
        labelled: (..., K): pixels of the class.

    Returns:
        ``'IoU'``, ``'Acc'`` (which is the recall), ``'Precision'`` and ``'Recall'`` of each class, (..., K), 0 to 1;
        nan where the divisor is 0.
    """
    with np.errstate(invalid='ignore'):
        recall = intersection / labelled
        return dict(IoU=intersection / (predicted + labelled - intersection), Acc=recall,
                    Precision=intersection / predicted, Recall=recall)


@dataclass
class SegmentationResults:
    """What was counted in a test of a segmentor with K classes.

    Args:
        figures: Counts of each image.
        confusion: (K, K + 1), int64: pixels by their class and the predicted class. The last column is that of
            predictions that are not one of the classes.
        contours: (3, K), int64: the counts of :class:`SegmentationFigures` within the boundary regions of all images.
        calibration: Of the pixels; None if the model has no probabilities.
        uncalibrated: Why it has none.
        worst: Images with the lowest mean IoU of the classes that occur in it or are predicted. Truth and prediction
            are label maps, (H, W), uint8 or uint16, in which K is an ignored pixel.
        best: Images with the highest.
    """
    figures: SegmentationFigures
    confusion: np.ndarray
    contours: np.ndarray
    calibration: Optional[Calibration]
    uncalibrated: str
    worst: List[Example]
    best: List[Example]

    @property
    def totals(self) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Intersection, predicted and labelled pixels of each class over all images, (K,), int64."""
        figures = self.figures
        return figures.intersection.sum(0), figures.predicted.sum(0), figures.labelled.sum(0)

    @property
    def classes(self) -> Dict[str, np.ndarray]:
        """The accuracies of each class, (K,), 0 to 1, by name; nan where there is none."""
        return dict(**accuracies(*self.totals), **{'Boundary IoU': accuracies(*self.contours)['IoU']})

    @property
    def metrics(self) -> Dict[str, float]:
        """The accuracies over all classes, 0 to 1, and the calibration error."""
        intersection, _, labelled = self.totals
        correct = intersection.sum() / labelled.sum() if labelled.any() else float('nan')
        found = dict(aAcc=float(correct), **{f'm{name}': known_mean(values) for name, values in self.classes.items()})
        return found if self.calibration is None else dict(**found, ECE=self.calibration.error)


@dataclass
class _Sums:
    confusion: np.ndarray  # (K + 1, K + 1): the last row is that of labels that are not ignored and no class
    contours: np.ndarray
    calibration: Calibration = field(default_factory=Calibration)
    examples: Examples = field(default_factory=Examples)


class SegmentationMetric(SummingMetric):
    """Counts pixels as mmseg's ``IoUMetric`` does, and also classes that are mistaken for each other, contours, and
    probabilities. No label map stays in memory but those of the worst and the best images.

    Args:
        classes: Name of each label that the model predicts.
        size: Number of images of the dataset.
        write: Called in the main process with the results.
        probabilities: Of the pixels of a sample.
        ignored: Label of the pixels that are not counted.
    """

    def __init__(self, classes: Sequence[str], size: int, write: Callable[[SegmentationResults], Any],
                 probabilities: PixelProbabilities, ignored: int = 255):
        self.classes = list(classes)
        super().__init__(size)
        self.write, self.probabilities, self.ignored = write, probabilities, ignored

    def zero(self) -> _Sums:
        """Returns sums over no image."""
        number = len(self.classes)
        return _Sums(np.zeros((number + 1, number + 1), np.int64), np.zeros((3, number), np.int64))

    def add(self, sample: dict, position: int, first: bool) -> Tuple[str, np.ndarray]:
        """Counts the pixels of an image.

        Returns:
            The path of the image, and intersection, predicted and labelled pixels, (3, K), int64.
        """
        path = sample.get('img_path') or f'image {position}'
        truth, predicted, kept = self._maps(sample)
        confusion = self._confusion(truth, predicted, kept)
        counts = np.stack([confusion.diagonal()[:-1], confusion.sum(0)[:-1], confusion.sum(1)[:-1]])
        if first:
            number, sums = len(self.classes), self.sums
            correct = (truth == predicted) & (truth < number) & kept
            sums.confusion += confusion
            if not self.probabilities.missing:
                probability = self.probabilities(sample['seg_logits']['data'], sample['pred_sem_seg']['data'])
                sums.calibration.add(probability[kept], correct[kept])
            truth, predicted = (np.where(kept, labels, number).astype(labels.dtype) for labels in (truth, predicted))
            sums.contours += self._contours(truth, predicted, correct)
            score = known_mean(accuracies(*counts)['IoU'])
            sums.examples.add(score, position, lambda: Example(path, score, truth.shape, truth, predicted))
        return path, counts

    def _maps(self, sample: dict) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns labels and predictions, (H, W), uint8 or uint16, in which K is all that is not a class, and which
        pixels are not ignored."""
        number = len(self.classes)
        kind = np.uint8 if number <= 255 else np.uint16
        truth = sample['gt_sem_seg']['data'].cpu().numpy()
        truth = truth.reshape(truth.shape[-2:])
        predicted = sample['pred_sem_seg']['data'].cpu().numpy().reshape(truth.shape)
        # of an unsigned number, a negative label is greater than all classes
        small = (np.minimum(labels.astype(np.int64, copy=False).view(np.uint64), number).astype(kind)
                 for labels in (truth, predicted))
        return *small, truth != self.ignored

    def _confusion(self, truth: np.ndarray, predicted: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Returns the pixels that are not ignored by label and prediction, (K + 1, K + 1)."""
        size = len(self.classes) + 1
        rows = np.where(kept, truth.astype(np.intp), size)  # one more row for the ignored pixels, which is left out
        return np.bincount((rows * size + predicted).ravel(), minlength=(size + 1) * size).reshape(-1, size)[:-1]

    def _contours(self, truth: np.ndarray, predicted: np.ndarray, correct: np.ndarray) -> np.ndarray:
        width, number = distance(truth.shape), len(self.classes)
        near_truth, near_predicted = boundary(truth, width), boundary(predicted, width)
        parts = truth[near_truth & near_predicted & correct], predicted[near_predicted], truth[near_truth]
        return np.stack([np.bincount(part, minlength=number + 1)[:number] for part in parts])

    def compute_metrics(self, results: List[Tuple[str, np.ndarray]]) -> dict:
        """Adds up what the processes counted, and hands the results to ``write``."""
        counts = np.stack([counts for _, counts in results], 1)
        figures = SegmentationFigures([path for path, _ in results], self.classes, *counts)
        first, *others = self.gathered
        worst, best = first.examples.choose([sums.examples for sums in others])
        calibration = sum((sums.calibration for sums in others), first.calibration)
        missing = self.probabilities.missing
        self.write(SegmentationResults(
            figures, sum(sums.confusion for sums in self.gathered)[:-1], sum(sums.contours for sums in self.gathered),
            None if missing else calibration, missing, worst, best))
        return {}
