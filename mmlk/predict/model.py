"""What a predictor needs of a model, wherever it comes from."""
from pathlib import Path
from typing import Any, Optional, Tuple

import numpy as np

from .tiles import Found


class ImageError(ValueError):
    """A file cannot be read as an image or a video that the model takes. The message names the file."""


class Model:
    """Base class of models that predict images.

    Images are (H, W, C), and three channels are RGB.

    Attributes ``task``, ``classes``, ``palette``, ``channels`` and ``reduce_zero_label`` are those of
    :class:`.predictor.Predictor`.

    Attributes:
        binary_threshold: Probability from which a pixel is of class 1, of a segmentor with one probability for each
            pixel; else None.
        network: The segmentor or detector, a module of PyTorch in eval mode; None if there is none.
        nms_iou_threshold: Intersection over union from which two boxes of a class are of one object.
    """
    task: str
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, int, int], ...]
    channels: int
    reduce_zero_label: bool = False
    binary_threshold: Optional[float] = None
    network: Any = None
    nms_iou_threshold: float = 0.5

    def read(self, path: Path) -> np.ndarray:
        """Reads a file as an image.

        Raises:
            ImageError: The file cannot be read as an image.
        """
        raise NotImplementedError

    def labels(self, image: np.ndarray) -> np.ndarray:
        """Returns the class of each pixel, (H, W), of any integer type."""
        raise NotImplementedError

    def scores(self, image: np.ndarray) -> np.ndarray:
        """Returns the scores of each pixel, (C, H, W), float32: logits, or one probability."""
        raise NotImplementedError

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Returns the class of each pixel, (H, W), for scores, (C, H, W)."""
        if self.binary_threshold is not None:
            return (scores[0] > self.binary_threshold).astype(np.uint8)
        return scores.argmax(0)

    def detect(self, image: np.ndarray, score_threshold: float) -> Found:
        """Returns the detections with at least this score, the highest score first."""
        raise NotImplementedError


def torch_device(name: Optional[str]) -> str:
    """Returns a device that PyTorch can use: the given one, or by default a GPU where there is one.

    Raises:
        ValueError: PyTorch cannot use it.
    """
    import torch
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:  # PyTorch's message may be many lines long
        raise ValueError(f'the device {name!r} cannot be used: {str(error).splitlines()[0]}') from error
    return name
