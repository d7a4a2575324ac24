"""Images and label maps in a run: what cannot be right is an error that names the file."""
import os
import os.path as osp
from typing import Optional, Sequence

from mmcv import transforms
from mmcv.transforms import TRANSFORMS
from PIL import Image

from mmlk.datasets.audit import is_number, points_fault, runs_fault

# How a whole file ends, by how it begins.
_ENDS = {b'\xff\xd8': b'\xff\xd9', b'\x89PNG\r\n\x1a\n': b'IEND\xaeB`\x82'}


class DataError(ValueError):
    """A file of a dataset cannot be used; the message, of one line, names it."""


class LoadImageFromFile(transforms.LoadImageFromFile):
    """mmcv's, which with some decoders makes of half a JPEG a picture that is grey below, and of a file that it cannot
    read does not say the name.

    Grey, CMYK, 16-bit and transparent images become 8-bit BGR as in mmcv: grey three times, 16 bits by their upper
    eight, and without the alpha channel (but OpenCV darkens the transparent parts of a TIFF).

    Raises:
        DataError: The image cannot be decoded to its end; or its label map, a PNG of mmseg's, is of another size
            or has 16 bits, of which mmseg takes the lower eight; or its masks and boxes are none.
    """

    def transform(self, results: dict) -> Optional[dict]:
        path, labels = results['img_path'], results.get('seg_map_path')
        try:
            loaded = super().transform(results)
        except Exception as error:  # cv2's own, mmcv's assertion, OSError
            raise DataError(f'{path} cannot be read as an image ({" ".join(str(error).split())})') from error
        if loaded is not None and osp.isfile(path):
            _check_end(path)
        if loaded is not None and labels and 'seg_fields' in results and osp.isfile(labels):  # one of mmseg
            _check_labels(labels, loaded['img'].shape[:2])
        if loaded is not None:
            _check_instances(path, results.get('instances') or (), loaded['img'].shape[:2])
        return loaded


def _check_end(path: str) -> None:
    with open(path, 'rb') as file:
        head = file.read(8)
        file.seek(max(0, os.fstat(file.fileno()).st_size - 8))
        tail = file.read()
    end = next((end for begin, end in _ENDS.items() if head.startswith(begin)), b'')
    if not tail.endswith(end):  # cut off, or more bytes follow; a small picture within the file has such an end too
        try:
            with Image.open(path) as image:
                image.load()
        except Exception as error:  # Pillow's decoders raise about anything on a broken file
            raise DataError(f'{path} is truncated or damaged ({error})') from error


def _check_labels(path: str, size: tuple) -> None:
    """Refuse a PNG by its header (RFC 2083, 4.1.1)."""
    with open(path, 'rb') as file:
        head = file.read(26)
    if head[:8] != b'\x89PNG\r\n\x1a\n' or len(head) < 26:
        return
    width, height = (int.from_bytes(head[place:place + 4], 'big') for place in (16, 20))
    if (height, width) != tuple(size):
        raise DataError(f'{path} is {height}x{width}, its image {size[0]}x{size[1]} (HxW)')
    if (head[24], head[25]) == (16, 0):
        raise DataError(f'{path} has 16 bits for a label; expected 8')


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
