"""Loads images in a run, and checks images, label maps and annotations. Errors name the file."""
import os.path as osp
from typing import Optional, Sequence

import numpy as np
from mmcv import transforms
from mmcv.transforms import TRANSFORMS
from PIL import Image

from mmlk.datasets.audit import is_number, points_fault, runs_fault
from mmlk.datasets.images import check_end


class DataError(ValueError):
    """A file of a dataset cannot be used. The message is one line and names the file."""


class LoadImageFromFile(transforms.LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` with checks.

    mmcv alone does not name a file that it cannot read, and with some decoders it returns a truncated JPEG as an image
    whose lower part is grey.

    As in mmcv, the result is 8-bit BGR. Grey images are repeated in three channels, of 16-bit images the upper eight
    bits are used, and an alpha channel is dropped (OpenCV darkens the transparent parts of a TIFF).

    Raises:
        DataError: The image cannot be decoded completely; its label map (mmseg) has another size, or contains a label
            above 255, of which mmseg would use the lower eight bits; or its masks or boxes (mmdet) are invalid.
    """

    def transform(self, results: dict) -> Optional[dict]:
        path, labels = results['img_path'], results.get('seg_map_path')
        try:
            loaded = super().transform(results)
        except Exception as error:  # OpenCV's errors, mmcv's assertion, OSError
            raise DataError(f'{path} cannot be read as an image ({" ".join(str(error).split())})') from error
        try:
            check_end(path)
        except ValueError as error:
            raise DataError(f'{path} {error}') from error
        if loaded is not None and labels and 'seg_fields' in results and osp.isfile(labels):  # a dataset of mmseg
            _check_labels(labels, loaded['img'].shape[:2])
        if loaded is not None:
            _check_instances(path, results.get('instances') or (), loaded['img'].shape[:2])
        return loaded


def _check_labels(path: str, size: tuple) -> None:
    """Raises DataError if the label map has another size than its image, or labels that need more than eight bits."""
    try:
        with Image.open(path) as picture:  # reads only the header
            found = picture.size[::-1]
            largest = np.asarray(picture).max() if picture.mode[0] in 'IF' else 255
    except Exception:  # Pillow cannot read it; the pipeline's own loader may, or raises an error
        return
    if found != tuple(size):
        raise DataError(f'{path} is {found[0]}x{found[1]}, its image {size[0]}x{size[1]} (HxW)')
    if largest > 255:
        raise DataError(f'{path} holds label {largest}; mmseg reads eight bits, 0 to 255')


def _check_instances(path: str, instances: Sequence[dict], size: tuple) -> None:
    """Raises DataError for masks and boxes with which C code would crash the process or read uninitialized memory."""
    for instance in instances:
        mask, fault = instance.get('mask'), ''
        if isinstance(mask, list):
            fault = next(filter(None, (points_fault(points, *size) for points in mask)), '')
        elif isinstance(mask, dict):
            fault = runs_fault(mask, *size)
        if not all(map(is_number, instance.get('bbox') or ())):
            fault = f"a box {instance['bbox']}"
        if fault:
            raise DataError(f'the annotations of {path} hold {fault}; tools/check_data.py lists all such')


def guard() -> None:
    """Replaces ``LoadImageFromFile`` in mmcv's registry with the class of this module, for this process."""
    TRANSFORMS.register_module(name='LoadImageFromFile', module=LoadImageFromFile, force=True)
