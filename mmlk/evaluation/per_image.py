"""Figures of each image of a test, from which an accuracy can be computed for any selection of images.

A bootstrap over images draws images and computes the accuracy of what it drew. The mean IoU of some images is a
function of the sums of three counts over these images, and the average precision of some images is one of the matches
that were found in each image. So a test that keeps them need not be run again.
"""
from dataclasses import dataclass, fields
from pathlib import Path
from typing import List, Type, TypeVar, Union

import numpy as np

from mmlk._files import whole

FIGURES = TypeVar('FIGURES', bound='PerImage')


@dataclass
class PerImage:
    """Figures of N images and K classes.

    Args:
        images: N paths or ids, in the order of the dataset.
        classes: K names.
    """
    images: List[str]
    classes: List[str]

    def save(self, path: Union[str, Path]) -> None:
        """Writes the figures to a .npz file, which is there as a whole or not at all."""
        arrays = {item.name: np.asarray(getattr(self, item.name)) for item in fields(self)}
        with whole(str(path)) as temporary:
            with open(temporary, 'wb') as file:
                np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls: Type[FIGURES], path: Union[str, Path]) -> FIGURES:
        """Reads what :meth:`save` wrote. Nothing is unpickled, which is the default of NumPy.

        Raises:
            ValueError: The file cannot be read, or does not have these figures.
        """
        try:
            with np.load(path) as content:
                found = {item.name: content[item.name] for item in fields(cls)}
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f'{path} has no figures of images as {cls.__name__} needs them: {error}') from error
        for name in ('images', 'classes'):
            found[name] = [str(text) for text in found[name]]
        return cls(**found)


@dataclass
class SegmentationFigures(PerImage):
    """Counts of pixels of a semantic segmentation. Pixels whose label is ignored are in none of them.

    Args:
        intersection: (N, K), int64: pixels of the class that are predicted as the class.
        predicted: (N, K), int64: pixels that are predicted as the class.
        labelled: (N, K), int64: pixels of the class.
    """
    intersection: np.ndarray
    predicted: np.ndarray
    labelled: np.ndarray


@dataclass
class DetectionFigures(PerImage):
    """Matches of M predicted boxes or masks with the objects of their images, at T thresholds of IoU, as pycocotools
    finds them, for A ranges of area.

    The predictions are those that pycocotools counts (the best of each image and class), in the order of the images
    and of falling score within an image and class, so that a stable sort by score gives the order of pycocotools. For
    its sake, the images are sorted by their ids.

    Args:
        ranges: (A,) names: 'all', 'small', 'medium', 'large'.
        thresholds: (T,), float64.
        objects: (A, N, K), int64: objects that are counted (those of a crowd or outside the range are not).
        image: (M,), int64: index of the image.
        label: (M,), int64: index of the class.
        score: (M,), float64.
        matched: (A, M, T), bool: whether the prediction was matched with an object.
        ignored: (A, M, T), bool: whether the prediction is counted neither as right nor as wrong.
    """
    ranges: List[str]
    thresholds: np.ndarray
    objects: np.ndarray
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray

    def __post_init__(self):
        self.ranges = [str(name) for name in self.ranges]
