"""Predictions with a model, whole or tile by tile."""
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from .model import ImageError, Model
from .prediction import Prediction, smallest_type
from .tiles import Span, blend, merge, spans

#: Endings, in small letters, of exported files.
EXPORTED = ('.onnx', '.pt', '.pt2')


def is_exported(model: Any) -> bool:
    """Returns whether a model is given as the path of an exported file."""
    return str(model).lower().endswith(EXPORTED)


class Predictor:
    """Predicts the classes of pixels, or objects, in images.

    From a config and a checkpoint, an image is prepared by the config's test pipeline and data preprocessor, and
    predicted as ``tools/test.py`` does. From an exported file, it is prepared as the metadata in the file say.

    With ``tile``, every tile of that size is predicted as if it were an image, which includes the resizing of the test
    pipeline. The scores of a segmentor are averaged where tiles overlap, with weights that fall to the edges of the
    tiles. Of detections that overlap in two tiles one is kept. The memory that an image needs in addition to its
    prediction is proportional to the tile and to ``overlap`` times the width of the image.

    Args:
        model: The path of a config, or a config; or the path of a file that ``tools/export.py`` wrote, which ends in
            '.onnx', '.pt' (TorchScript) or '.pt2' (exported program).
        checkpoint: A path, an http(s) URL or a name of the catalogue. For a config only.
        device: 'cpu', 'cuda', 'cuda:1', ...; by default a GPU where there is one.
        tile: Height and width of a tile in pixels. None to predict every image as a whole.
        overlap: How many pixels neighbouring tiles share. It should not be smaller than the objects to detect.
        score_threshold: Minimum score of a detection, 0 to 1.
        cfg_options: Overrides of the config, by dotted keys. For a config only.

    Attributes:
        task: 'segmentation' or 'detection'.
        classes: Name of each class.
        palette: Red, green and blue, 0 to 255, of each class.
        channels: Number of channels of the images.
        reduce_zero_label: Whether label maps of this dataset count classes from 1.
        model: The segmentor or detector, a module of PyTorch in eval mode; None for an exported file.

    Raises:
        ValueError: A config is given without a checkpoint, or an exported file with one; the config, the checkpoint or
            the file cannot be used; the file does not have the metadata of ``tools/export.py``, or does not take the
            tiles; or an argument is out of range.
        ImportError: A package that the file needs is not installed.
    """

    def __init__(self, model: Union[str, Path, Any], checkpoint: Optional[str] = None, *, device: Optional[str] = None,
                 tile: Optional[int] = None, overlap: int = 0, score_threshold: float = 0.3,
                 cfg_options: Optional[dict] = None):
        if tile is not None and tile < 1:
            raise ValueError(f'tile must be at least 1 pixel, got {tile}')
        if overlap < 0 or overlap and tile is None:
            raise ValueError(f'overlap is of tiles, and must not be negative: got overlap {overlap} and tile {tile}')
        if tile is not None and overlap >= tile:
            raise ValueError(f'overlap must be smaller than tile, got overlap {overlap} and tile {tile}')
        if not 0 <= score_threshold <= 1:
            raise ValueError(f'score_threshold must be from 0 to 1, got {score_threshold}')
        self._tile, self._overlap, self._score_threshold = tile, overlap, score_threshold
        self._model: Model
        if is_exported(model):
            from .from_file import FileModel
            if checkpoint is not None or cfg_options:
                raise ValueError(f'{model} is an exported file, which holds its weights and settings: give no '
                                 'checkpoint and no cfg_options with it')
            self._model = FileModel(str(model), device, tile)
        else:
            from .from_config import ConfigModel
            if checkpoint is None:
                raise ValueError(f'the config {getattr(model, "filename", model)} needs a checkpoint; an exported '
                                 f"file, which does not, ends in {', '.join(EXPORTED)}")
            self._model = ConfigModel(model, str(checkpoint), device, cfg_options)
        self.task, self.classes, self.palette = self._model.task, self._model.classes, self._model.palette
        self.model = self._model.network
        self.channels, self.reduce_zero_label = self._model.channels, self._model.reduce_zero_label

    def read(self, path: Union[str, Path]) -> np.ndarray:
        """Reads a file as an image for this predictor, by the loading step of the config's test pipeline.

        Returns:
            (H, W, C). Three channels are RGB of 8 bits, unless the pipeline has another loading step than mmcv's.

        Raises:
            ImageError: The file cannot be read as an image, is truncated, or has another number of channels than the
                model takes. It is a ValueError.
        """
        image = self._model.read(Path(path))
        try:
            return self._checked(image)
        except ValueError as error:
            raise ImageError(f'{path}: {error}') from error

    def __call__(self, image: np.ndarray) -> Prediction:
        """Predicts one image.

        Args:
            image: (H, W, C), or (H, W) for one channel, which a model for RGB gets three times. Three channels are RGB,
                uint8.

        Returns:
            The prediction, in pixels of this image.

        Raises:
            ValueError: The image has another number of channels or dimensions.
        """
        image = self._checked(image)
        size = (image.shape[0], image.shape[1])
        prediction = Prediction(self.task, self.classes, self.palette, size)
        if self.task == 'segmentation':
            labels = self._model.labels(image) if self._tile is None else self._labels_by_tiles(image)
            prediction.labels = labels.astype(smallest_type(self.classes), copy=False)
            return prediction
        found = (self._model.detect(image, self._score_threshold) if self._tile is None
                 else self._detections_by_tiles(image))
        prediction.boxes, prediction.scores, prediction.class_ids, prediction.crops = found
        return prediction

    def _checked(self, image: np.ndarray) -> np.ndarray:
        """Returns the image as (H, W, C)."""
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim != 3 or 0 in image.shape:
            raise ValueError(f'an image is (H, W, C) or (H, W), got {image.shape}')
        if image.shape[2] == 1 and self.channels == 3:
            image = np.repeat(image, 3, 2)
        if image.shape[2] != self.channels:
            raise ValueError(f'the model takes images of {self.channels} channels, got {image.shape[2]}')
        if image.shape[2] == 3 and image.dtype != np.uint8:
            raise ValueError(f'an RGB image is uint8, 0 to 255, got {image.dtype}')
        return image

    def _tiles(self, length: int) -> list[Span]:
        return spans(length, self._tile, self._tile - self._overlap)

    def _labels_by_tiles(self, image: np.ndarray) -> np.ndarray:
        labels = np.empty(image.shape[:2], smallest_type(self.classes))

        def put(rows: slice, columns: slice, scores: np.ndarray) -> None:
            labels[rows, columns] = self._model.decide(scores)

        blend(self._tiles(image.shape[0]), self._tiles(image.shape[1]), self._overlap,
              lambda rows, columns: self._model.scores(image[rows, columns]), put)
        return labels

    def _detections_by_tiles(self, image: np.ndarray):
        parts = []
        for rows in self._tiles(image.shape[0]):
            for columns in self._tiles(image.shape[1]):
                found = self._model.detect(image[slice(*rows), slice(*columns)], self._score_threshold)
                parts.append((found.moved(rows[0], columns[0]), rows, columns))
        return merge(parts, (image.shape[0], image.shape[1]), self._model.nms_iou_threshold)
