"""What a model predicts for one image, and its picture."""
from dataclasses import dataclass
from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mmlk.analysis.drawing import draw_boxes, legend
from mmlk.analysis.panels import overlay

ROWS = 128  # rows of an image that are drawn at a time, because colours are computed in float64


class MaskCrop(NamedTuple):
    """The part of a mask that is not empty.

    Args:
        top: Row of its first row in the image.
        left: Column of its first column in the image.
        mask: (h, w), bool. (0, 0) if the mask is empty.
    """
    top: int
    left: int
    mask: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, top: int = 0, left: int = 0) -> 'MaskCrop':
        """Returns the crop of a mask, (H, W), bool, whose first pixel is at row ``top`` and column ``left``."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not rows.size:
            return cls(top, left, np.zeros((0, 0), bool))
        part = mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        return cls(top + int(rows[0]), left + int(columns[0]), np.array(part, bool))

    @property
    def place(self) -> Tuple[slice, slice]:
        """The rows and columns of the image that it covers."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


@dataclass
class Prediction:
    """What a model predicts for one image.

    Args:
        task: 'segmentation' or 'detection'.
        classes: Name of each class.
        palette: Red, green and blue, 0 to 255, of each class.
        size: Height and width of the image in pixels.
        labels: Of a segmentor: the class of each pixel, (H, W), uint8, or uint16 for more than 256 classes.
        boxes: Of a detector: (N, 4), float32, x1, y1, x2, y2 in pixels of the image, the highest score first.
        scores: Of a detector: (N,), float32, 0 to 1.
        class_ids: Of a detector: (N,), int64.
        crops: The mask of each detection, without its empty borders; None if the model predicts no masks.
    """
    task: str
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, int, int], ...]
    size: Tuple[int, int]
    labels: Optional[np.ndarray] = None
    boxes: Optional[np.ndarray] = None
    scores: Optional[np.ndarray] = None
    class_ids: Optional[np.ndarray] = None
    crops: Optional[List[MaskCrop]] = None

    @property
    def masks(self) -> Optional[np.ndarray]:
        """The masks of the detections in the size of the image, (N, H, W), bool, made at each access; None if the model
        predicts none."""
        if self.crops is None:
            return None
        masks = np.zeros((len(self.crops), *self.size), bool)
        for mask, crop in zip(masks, self.crops):
            mask[crop.place] = crop.mask
        return masks

    def overlay(self, image: np.ndarray, legend: bool = True) -> np.ndarray:
        """Draws the prediction over the image. Of detections, those with the highest scores are drawn last.

        Args:
            image: The image, (H, W, 3), (H, W, C) or (H, W). One that is not RGB of 8 bits is converted.
            legend: Whether the names of the classes that occur are written below the image.

        Returns:
            (H + height of the legend, W, 3), uint8, RGB.

        Raises:
            ValueError: The image has another size than that of the prediction.
        """
        if image.shape[:2] != self.size:
            raise ValueError(f'the image is {image.shape[:2]} and that of the prediction {self.size} (height, width)')
        band = self.legend(self.size[1]) if legend else np.zeros((0, self.size[1], 3), np.uint8)
        drawn = np.empty((self.size[0] + len(band), self.size[1], 3), np.uint8)
        drawn[self.size[0]:] = band
        labels = self._map() if self.labels is None else self.labels
        for start in range(0, self.size[0], ROWS):
            rows = slice(start, min(start + ROWS, self.size[0]))
            part = viewable(image[rows])
            drawn[rows] = part if labels is None else overlay(part, labels[rows], self.palette)
        if self.boxes is None:
            return drawn
        return draw_boxes(drawn, self.boxes, self.class_ids, self.scores, self.classes, self.palette)

    def legend(self, width: int, rows: Optional[int] = None) -> np.ndarray:
        """Draws the names of the classes that occur, each with its colour, the commonest first.

        Args:
            width: Width of the picture in pixels.
            rows: Number of rows of names, for pictures of the same height; what does not fit is left out. By default as
                many as are needed, and none if no class occurs.

        Returns:
            (height, width, 3), uint8, RGB, white in the background.
        """
        return legend(self._present(), self.classes, self.palette, width, rows)

    def _present(self) -> List[int]:
        """Returns the classes that occur, those of the most pixels or detections first."""
        counts = np.zeros(len(self.classes), np.int64)
        if self.labels is None:
            counts += np.bincount(self.class_ids, minlength=len(counts))
        else:
            for start in range(0, len(self.labels), ROWS):
                counts += np.bincount(self.labels[start:start + ROWS].ravel(), minlength=len(counts))
        return [int(label) for label in np.argsort(-counts, kind='stable') if counts[label]]

    def _map(self) -> Optional[np.ndarray]:
        """Returns the class of the detection with the highest score at each pixel, (H, W), and -1 where there is none;
        None if there are no masks."""
        if not self.crops:
            return None
        labels = np.full(self.size, -1, np.int16)
        for index in np.argsort(self.scores, kind='stable'):
            labels[self.crops[index].place][self.crops[index].mask] = self.class_ids[index]
        return labels


def viewable(image: np.ndarray) -> np.ndarray:
    """Returns an image of any number of channels, (H, W, C) or (H, W), as RGB, (H, W, 3), uint8.

    Of more than three channels the first three are taken, of two the first, and of 16 bits the upper eight.
    """
    channels = image[..., None] if image.ndim == 2 else image
    channels = channels[..., :3] if channels.shape[2] >= 3 else np.repeat(channels[..., :1], 3, 2)
    if channels.dtype == np.uint16:
        channels = channels >> 8
    elif channels.dtype != np.uint8:
        channels = np.clip(np.rint(channels), 0, 255)
    return channels.astype(np.uint8, copy=False)


def smallest_type(classes: Sequence[str]) -> type:
    """Returns the type of a label map with these classes."""
    return np.uint8 if len(classes) <= 256 else np.uint16
