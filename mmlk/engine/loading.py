"""Images and label maps in a run: what cannot be right is an error that names the file."""
import os.path as osp
from typing import Optional, Sequence

import numpy as np
from mmcv import transforms
from mmcv.transforms import TRANSFORMS
from PIL import Image

from mmlk.datasets.audit import check_end, is_number, points_fault, runs_fault


class DataError(ValueError):
    """A file of a dataset cannot be used; the message, of one line, names it."""


class LoadImageFromFile(transforms.LoadImageFromFile):
    """mmcv's, which with some decoders makes of half a JPEG a picture that is grey below, and of a file that it cannot
    read does not say the name.

    Grey, CMYK, 16-bit and transparent images become 8-bit BGR as in mmcv: grey three times, 16 bits by their upper
    eight, and without the alpha channel (but OpenCV darkens the transparent parts of a TIFF).

    Raises:
        DataError: The image cannot be decoded to its end; or its label map, one of mmseg's, is of another size or
            holds a label above 255, of which mmseg takes the lower eight bits; or its masks and boxes are none.
    """

    def transform(self, results: dict) -> Optional[dict]:
        path, labels = results['img_path'], results.get('seg_map_path')
        try:
            loaded = super().transform(results)
        except Exception as error:  # cv2's own, mmcv's assertion, OSError
            raise DataError(f'{path} cannot be read as an image ({" ".join(str(error).split())})') from error
        try:
            check_end(path)
        except ValueError as error:
            raise DataError(f'{path} {error}') from error
        if loaded is not None and labels and 'seg_fields' in results and osp.isfile(labels):  # one of mmseg
            _check_labels(labels, loaded['img'].shape[:2])
        if loaded is not None:
            _check_instances(path, results.get('instances') or (), loaded['img'].shape[:2])
        return loaded


def _check_labels(path: str, size: tuple) -> None:
    """Refuse what is not as large as its image, and labels that do not fit into mmseg's eight bits."""
    try:
        with Image.open(path) as picture:  # reads no more than the header
            found = picture.size[::-1]
            largest = np.asarray(picture).max() if picture.mode[0] in 'IF' else 255
    except Exception:  # not a format of Pillow's: the loader of the pipeline may know it, or says why not
        return
    if found != tuple(size):
        raise DataError(f'{path} is {found[0]}x{found[1]}, its image {size[0]}x{size[1]} (HxW)')
    if largest > 255:
        raise DataError(f'{path} holds label {largest}; mmseg reads eight bits, 0 to 255')


def _check_instances(path: str, instances: Sequence[dict], size: tuple) -> None:
    """Refuse masks and boxes on which C code would end the process, or give whatever lies in memory."""
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
    """Let pipelines in this process that say LoadImageFromFile have ours."""
    TRANSFORMS.register_module(name='LoadImageFromFile', module=LoadImageFromFile, force=True)
