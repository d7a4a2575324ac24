"""The model in an exported file, which is run as its metadata say. OpenMMLab's packages are not imported here."""
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Dict, Iterator, Mapping, Optional, Tuple

import numpy as np

from mmlk.datasets.images import check_end, open_bands
from mmlk.deploy.metadata import Metadata, read_metadata

from .model import ImageError, Model, torch_device
from .prediction import MaskCrop
from .tiles import Found, blend, spans

METADATA = 'metadata.json'  # beside the graph, in files of PyTorch
FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'  # a variable of PyTorch
OUTPUTS = dict(segmentation=('labels', 'logits'), detection=('boxes', 'scores', 'labels', 'masks'))  # in their order
BAND = 256  # rows of an image for which scores are resized at a time

#: From images, (1, C, H, W), float32, to the outputs by name.
Run = Callable[[np.ndarray], Dict[str, np.ndarray]]


class FileModel(Model):
    """A segmentor or detector that ``tools/export.py`` wrote.

    Args:
        path: The file.
        device: As :class:`mmlk.predict.Predictor`.
        tile: Height and width of the images that it is to predict, if they are all the same.

    Raises:
        ValueError: The file cannot be read, has no metadata of ``tools/export.py``, gives features only, or does not
            take the tiles; or the device is not there.
        ImportError: onnxruntime is not installed.
    """

    def __init__(self, path: str, device: Optional[str] = None, tile: Optional[int] = None):
        if not Path(path).is_file():
            raise ValueError(f'no file at {path}')
        try:
            self._run, mapping = (_open_onnx if path.lower().endswith('.onnx') else _open_torch)(path, device)
            self._facts = facts = read_metadata(mapping)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
        if facts.task == 'features':
            raise ValueError(f'{path} gives the feature maps of a detector, not its detections; predict with the '
                             'config and the checkpoint, or export the detector end to end')
        if tile is not None and facts.resize is None and facts.window is None and not facts.takes(tile, tile):
            raise ValueError(f'{path} does not take tiles of {tile}x{tile} pixels: it takes {_sizes(facts)}')
        self.task, self.classes, self.palette = facts.task, facts.classes, facts.palette
        self.channels = 3 if facts.mean_and_std_are_of in ('RGB', 'BGR') else len(facts.mean)
        self.reduce_zero_label, self.binary_threshold = facts.reduce_zero_label, facts.binary_threshold
        if facts.nms_iou_threshold is not None:
            self.nms_iou_threshold = facts.nms_iou_threshold
        mean = facts.mean[::-1] if facts.mean_and_std_are_of == 'BGR' else facts.mean
        self._mean = np.array(mean, np.float32)

    def read(self, path: Path) -> np.ndarray:
        try:
            check_end(str(path))
            if self.channels not in (1, 3):
                return open_bands(path, self.channels)
        except ValueError as error:
            raise ImageError(str(error) if str(path) in str(error) else f'{path} {error}') from error
        cv2 = _cv2()
        try:
            data = np.fromfile(path, np.uint8)
            # the flags with which mmcv reads images for a model
            image = cv2.imdecode(data, cv2.IMREAD_COLOR if self.channels == 3 else cv2.IMREAD_GRAYSCALE)
        except (OSError, cv2.error) as error:
            raise ImageError(f"{path} cannot be read as an image ({' '.join(str(error).split())})") from error
        if image is None:
            raise ImageError(f'{path} cannot be read as an image')
        return image[..., ::-1] if self.channels == 3 else image[..., None]

    def labels(self, image: np.ndarray) -> np.ndarray:
        small = self._small_scores(image)
        height, width = image.shape[:2]
        if small.shape[1:] == (height, width):
            return self.decide(self._probability(small))
        labels = np.empty((height, width), np.uint16)
        for start in range(0, height, BAND):
            rows = slice(start, min(start + BAND, height))
            labels[rows] = self.decide(self._resized_scores(small, (height, width), rows))
        return labels

    def scores(self, image: np.ndarray) -> np.ndarray:
        small = self._small_scores(image)
        height, width = image.shape[:2]
        if small.shape[1:] == (height, width):
            return self._probability(small)
        return self._resized_scores(small, (height, width), slice(0, height))

    def _small_scores(self, image: np.ndarray) -> np.ndarray:
        """Returns the logits, (C, h, w), of the image as the config's test pipeline resizes it."""
        image = self._resize(image)
        if self._facts.window is None:
            return self._logits(image)
        crop, stride = self._facts.window
        height, width = image.shape[:2]
        logits = None

        def put(rows: slice, columns: slice, part: np.ndarray) -> None:
            nonlocal logits
            if logits is None:
                logits = np.empty((len(part), height, width), np.float32)
            logits[:, rows, columns] = part

        blend(spans(height, crop[0], stride[0]), spans(width, crop[1], stride[1]), 0,
              lambda rows, columns: self._logits(image[rows, columns]), put)
        return logits

    def _logits(self, image: np.ndarray) -> np.ndarray:
        """Returns the logits, (C, h, w), of an image, which is padded or resized if the file does not take its size."""
        facts, (height, width) = self._facts, image.shape[:2]
        target = height, width
        if not facts.takes(height, width):
            target = self._nearest_size(height, width)
        inside = height <= target[0] and width <= target[1]
        if inside and (facts.size_step is not None or facts.window is not None):
            return self._run(_batch(self._padded(image, target)))['logits'][0][:, :height, :width]
        logits = self._run(_batch(_resize_image(image, target)))['logits'][0]
        return _resize_maps(logits, (height, width), slice(0, height), facts.align_corners)

    def _nearest_size(self, height: int, width: int) -> Tuple[int, int]:
        """Returns a height and width that the file takes: the next larger ones within its bounds."""
        facts = self._facts
        if facts.size_step is None:
            return facts.size
        sides = []
        for side, (least, most) in ((height, facts.height), (width, facts.width)):
            side = -(-max(side, least) // facts.size_step) * facts.size_step
            sides.append(side if most is None else min(side, most // facts.size_step * facts.size_step))
        return sides[0], sides[1]

    def _resized_scores(self, small: np.ndarray, size: Tuple[int, int], rows: slice) -> np.ndarray:
        return self._probability(_resize_maps(small, size, rows, self._facts.align_corners))

    def _probability(self, logits: np.ndarray) -> np.ndarray:
        return logits if self.binary_threshold is None else 1 / (1 + np.exp(-logits))

    def detect(self, image: np.ndarray, score_threshold: float) -> Found:
        facts, size = self._facts, image.shape[:2]
        image = self._resize(image)
        divisor = facts.pad_divisor
        target = -(-image.shape[0] // divisor) * divisor, -(-image.shape[1] // divisor) * divisor
        if not facts.takes(*target):
            target = self._nearest_size(*target)
            scale = min(1, target[0] / image.shape[0], target[1] / image.shape[1])
            if scale < 1:
                image = _resize_image(image, (max(1, int(image.shape[0] * scale)), max(1, int(image.shape[1] * scale))))
        height, width = image.shape[:2]
        outputs = self._run(_batch(self._padded(image, target)))
        scale_x, scale_y = width / size[1], height / size[0]
        boxes = outputs['boxes'].reshape(-1, 4).astype(np.float32) / np.array([scale_x, scale_y] * 2, np.float32)
        boxes = np.clip(boxes, 0, np.array([size[1], size[0]] * 2, np.float32))
        scores, class_ids = outputs['scores'].reshape(-1), outputs['labels'].reshape(-1).astype(np.int64)
        found = Found(boxes, scores.astype(np.float32), class_ids, None)
        masks = outputs.get('masks')
        if masks is None:
            return found.best(score_threshold)
        masks = masks.reshape(-1, *masks.shape[-2:])[:, :height, :width]
        crops = [self._crop(mask, size) if score >= score_threshold else MaskCrop(0, 0, np.zeros((0, 0), bool))
                 for mask, score in zip(masks, scores)]
        return found._replace(crops=crops).best(score_threshold)

    def _crop(self, mask: np.ndarray, size: Tuple[int, int]) -> MaskCrop:
        """Returns a mask or its probabilities, (h, w), in the size of the image."""
        threshold = 0.5 if mask.dtype == bool or self._facts.mask_threshold is None else self._facts.mask_threshold
        if mask.shape != size:
            mask = _cv2().resize(mask.astype(np.float32), size[::-1], interpolation=_cv2().INTER_LINEAR)
        return MaskCrop.of(mask if mask.dtype == bool else mask >= threshold)

    def _resize(self, image: np.ndarray) -> np.ndarray:
        """Returns the image in the size that the config's test pipeline gives it."""
        if self._facts.resize is None:
            return image
        (width, height), keep_ratio = self._facts.resize
        if keep_ratio:  # as mmcv.imrescale
            sides = image.shape[:2]
            scale = min(max(width, height) / max(sides), min(width, height) / min(sides))
            height, width = (int(side * scale + 0.5) for side in sides)
        return _resize_image(image, (height, width))

    def _padded(self, image: np.ndarray, size: Tuple[int, ...]) -> np.ndarray:
        """Returns the image with the mean of each channel at the right and at the bottom, (height, width, C)."""
        if image.shape[:2] == size:
            return image
        padded = np.empty((*size, image.shape[2]), np.float32)
        padded[:] = self._mean
        padded[:image.shape[0], :image.shape[1]] = image
        return padded


def _cv2():
    try:
        import cv2
    except ImportError as error:
        raise ImportError(f'images are read and resized by OpenCV, which cannot be imported ({error}): '
                          'pip install opencv-python-headless') from error
    return cv2


def _open_onnx(path: str, device: Optional[str]) -> Tuple[Run, Mapping[str, str]]:
    """Opens an ONNX file, and returns what runs it, and its metadata."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f'an ONNX file is run by onnxruntime, which cannot be imported ({error}): '
                          'pip install onnxruntime') from error
    there = onnxruntime.get_available_providers()
    kind, _, index = (device or ('cuda' if 'CUDAExecutionProvider' in there else 'cpu')).partition(':')
    provider = f'{kind.upper()}ExecutionProvider'
    if kind not in ('cpu', 'cuda') or provider not in there:
        raise ValueError(f"this onnxruntime cannot use the device {device!r}; it has {', '.join(there)}")
    try:
        session = onnxruntime.InferenceSession(path, providers=[(provider, dict(device_id=index) if index else {})])
    except Exception as error:  # of onnxruntime's own types
        raise ValueError(f"cannot be read as an ONNX file ({' '.join(str(error).split())[:400]})") from error
    source, names = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]
    return (lambda images: dict(zip(names, session.run(None, {source: images}))),
            session.get_modelmeta().custom_metadata_map)


def _open_torch(path: str, device: Optional[str]) -> Tuple[Run, Mapping[str, str]]:
    """Opens a file of PyTorch, and returns what runs it, and its metadata."""
    import torch
    device = torch_device(device)
    kept = {METADATA: ''}
    try:
        if path.lower().endswith('.pt2'):
            with _weights_only():
                module = torch.export.load(path, extra_files=kept).module().to(device)
        else:
            module = torch.jit.load(path, map_location=device, _extra_files=kept)
    except Exception as error:  # of any type on a broken file
        raise ValueError('cannot be read as an exported file of PyTorch; if it is a checkpoint, give its config before '
                         f"it ({' '.join(str(error).split())[:400]})") from error
    try:
        mapping = json.loads(kept[METADATA] or '{}')
    except ValueError as error:
        raise ValueError(f'its metadata are not JSON ({error})') from error
    names = OUTPUTS.get(mapping.get('task'), ())

    def run(images: np.ndarray) -> Dict[str, np.ndarray]:
        with torch.no_grad():
            return {name: out.cpu().numpy() for name, out in zip(names, module(torch.from_numpy(images).to(device)))}

    return run, mapping


@contextmanager
def _weights_only() -> Iterator[None]:
    """A context manager in which ``torch.load`` unpickles tensors only, whatever its caller asks for.

    ``torch.export.load`` asks for any type, and would run the code in a file.
    """
    before = os.environ.get(FORCE)
    os.environ[FORCE] = '1'
    try:
        yield
    finally:
        del os.environ[FORCE]
        if before is not None:
            os.environ[FORCE] = before


def _sizes(facts: Metadata) -> str:
    """Returns a text that says which sizes a file takes."""
    if facts.size_step is None:
        return f'{facts.size[1]}x{facts.size[0]} only'
    return (f"multiples of {facts.size_step}, height from {facts.height.least} to {facts.height.most or 'any'}, width "
            f"from {facts.width.least} to {facts.width.most or 'any'}")


def _batch(image: np.ndarray) -> np.ndarray:
    """Returns an image as a batch, (1, C, H, W), float32."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)


def _resize_image(image: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """Resizes an image to this height and width, as mmcv does."""
    if image.shape[:2] == size:
        return image
    cv2 = _cv2()
    resized = cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*size, image.shape[2])


def _resize_maps(maps: np.ndarray, size: Tuple[int, int], rows: slice, align_corners: bool) -> np.ndarray:
    """Resizes maps, (C, h, w), as ``torch.nn.functional.interpolate(mode='bilinear')`` does.

    Args:
        maps: float32.
        size: Height and width of the result.
        rows: The rows of the result that are computed.
        align_corners: As in PyTorch.

    Returns:
        (C, number of rows, width), float32.
    """
    if maps.shape[1:] == size:
        return maps[:, rows]
    (top, bottom, down), (left, right, across) = (
        _neighbours(length, wanted, align_corners) for length, wanted in zip(maps.shape[1:], size))
    down = down[rows, None]
    lines = maps[:, top[rows]] * (1 - down) + maps[:, bottom[rows]] * down
    return lines[:, :, left] * (1 - across) + lines[:, :, right] * across


def _neighbours(length: int, wanted: int, align_corners: bool) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, for each of the wanted places, the two places between which it lies, and the weight of the second."""
    if align_corners:
        place = np.arange(wanted) * ((length - 1) / max(1, wanted - 1))
    else:
        place = np.maximum((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0)
    first = np.minimum(place.astype(int), length - 1)
    return first, np.minimum(first + 1, length - 1), (place - first).astype(np.float32)
