"""Expected calibration error: how far the probabilities of a model are from how often it is right.

Predictions are put into 15 bins of equal width by the probability of what was predicted, as in Guo et al.
(arXiv:1706.04599). The error is the mean, over all predictions, of the difference between the mean probability and the
fraction of right predictions of their bin.
"""
from dataclasses import dataclass, field
from typing import Any, Tuple

import numpy as np
import torch
from torch import Tensor, nn

BINS = 15
_ELEMENTS = 2 ** 20  # scores at a time: as many as fit into the caches of a processor, which halves the time
_SMALLEST = 1e-30  # exponentials above it are normal numbers of float32


def _zeros() -> np.ndarray:
    return np.zeros(BINS)


@dataclass
class Calibration:
    """Sums over the predictions in each bin. Bin i holds probabilities p with i / 15 < p <= (i + 1) / 15, and the first
    one also 0.

    Args:
        count: (15,), float64: predictions.
        probability: (15,), float64: sum of their probabilities.
        right: (15,), float64: predictions that are right.
    """
    count: np.ndarray = field(default_factory=_zeros)
    probability: np.ndarray = field(default_factory=_zeros)
    right: np.ndarray = field(default_factory=_zeros)

    def add(self, probability: np.ndarray, right: np.ndarray) -> None:
        """Adds predictions: their probabilities, (N,), float, and whether they are right, (N,), bool."""
        place = np.clip(np.ceil(probability * BINS).astype(np.intp) - 1, 0, BINS - 1)
        wrong, hits = np.bincount(2 * place + right, minlength=2 * BINS).reshape(BINS, 2).T
        self.count += wrong + hits
        self.probability += np.bincount(place, probability, minlength=BINS)
        self.right += hits

    def __add__(self, other: 'Calibration') -> 'Calibration':
        return Calibration(self.count + other.count, self.probability + other.probability, self.right + other.right)

    @property
    def means(self) -> Tuple[np.ndarray, np.ndarray]:
        """The mean probability and the fraction of right predictions of each bin, (15,); nan in an empty bin."""
        with np.errstate(invalid='ignore'):
            return self.probability / self.count, self.right / self.count

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1; nan without predictions."""
        if not self.count.sum():
            return float('nan')
        return float(np.abs(self.probability - self.right).sum() / self.count.sum())


class PixelProbabilities:
    """The probability that a segmentor gives to the class that it predicts for a pixel.

    Args:
        segmentor: A segmentor of mmseg.
        averaged: Whether predictions are averaged by test-time augmentation.

    Attributes:
        missing: Why there are no probabilities; ``''`` if there are.
    """

    def __init__(self, segmentor: nn.Module, averaged: bool = False):
        from mmseg.models.decode_heads.decode_head import BaseDecodeHead
        head: Any = getattr(segmentor, 'decode_head', None)
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        self.missing, self._sigmoid = '', False
        if averaged:
            self.missing = 'mmseg does not keep the probabilities that test-time augmentation averages'
        elif not isinstance(head, BaseDecodeHead) or type(head).predict_by_feat is not BaseDecodeHead.predict_by_feat:
            self.missing = (f'{type(head).__name__} scores the classes of a pixel by sums over masks, which are not '
                            'probabilities')
        else:
            losses = head.loss_decode if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]
            self._sigmoid = all(getattr(loss, 'use_sigmoid', False) for loss in losses)

    def __call__(self, scores: Tensor, labels: Tensor) -> np.ndarray:
        """Returns the probabilities of the predicted classes, (H, W), float32.

        Of the softmax over several classes this is the greatest probability, without a look at ``labels``: mmseg's
        segmentors predict the class with the greatest score.

        Args:
            scores: ``seg_logits`` of a sample of mmseg, (C, H, W): logits, or with C = 1 the probability of label 1.
            labels: Predicted labels, (H, W) or (1, H, W).
        """
        labels = labels.reshape(1, *scores.shape[1:]).long()
        if len(scores) == 1:
            found = torch.where(labels == 1, scores, 1 - scores)[0]
        elif self._sigmoid:
            found = scores.gather(0, labels)[0].sigmoid()
        else:
            rows = max(1, _ELEMENTS // (scores.shape[0] * scores.shape[2]))
            found = torch.cat([_greatest_probability(part) for part in scores.split(rows, 1)])
        return found.float().cpu().numpy()


def _greatest_probability(scores: Tensor) -> Tensor:
    """Returns the greatest value of the softmax over the classes, (H, W), of logits (C, H, W).

    The exponentials are computed of the logits as they are, which saves the time of a subtraction. Only logits that are
    far from 0 need it, because their exponentials, or a sum of these, are not normal numbers of float32.
    """
    scores = scores.float()
    exponentials = scores.exp()
    greatest, total = exponentials.amax(0), exponentials.sum(0)
    if not (_SMALLEST < float(greatest.min()) and float(total.max()) < float('inf')):
        return 1 / (scores - scores.amax(0)).exp_().sum(0)
    return greatest / total
