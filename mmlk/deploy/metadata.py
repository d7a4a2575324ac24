"""Reads the metadata of an exported file: what one has to know to prepare an image and to name the results.

Neither PyTorch nor OpenMMLab is imported here. The metadata are a mapping of texts: the metadata properties of an ONNX
file, or the content of ``metadata.json`` in a file of PyTorch. Values other than text are written as JSON::

    session = onnxruntime.InferenceSession('model.onnx')
    metadata = read_metadata(session.get_modelmeta().custom_metadata_map)
"""
import json
from dataclasses import dataclass
from typing import Any, Callable, Mapping, NamedTuple, Optional, Tuple

TASKS = ('segmentation', 'detection', 'features')


class Resize(NamedTuple):
    """How the test pipeline of the config resizes an image before the model gets it.

    Args:
        scale: Width and height in pixels.
        keep_ratio: Whether the aspect ratio is kept. Then the image is made as large as it can be with its longer side
            at most the larger and its shorter side at most the smaller of the two numbers of ``scale``.
    """
    scale: Tuple[int, int]
    keep_ratio: bool


class Window(NamedTuple):
    """The windows by which a segmentor is tested, the logits of which are averaged where they overlap.

    Args:
        crop_size: Height and width of a window in pixels.
        stride: Distance from one window to the next in pixels, vertical and horizontal.
    """
    crop_size: Tuple[int, int]
    stride: Tuple[int, int]


class Bounds(NamedTuple):
    """The smallest and the largest side in pixels; the largest is None where there is no bound."""
    least: int
    most: Optional[int]

    def __contains__(self, side: object) -> bool:
        return isinstance(side, int) and self.least <= side and (self.most is None or side <= self.most)


@dataclass(frozen=True)
class Metadata:
    """The metadata of an exported file.

    Args:
        task: 'segmentation' (outputs ``labels`` and ``logits``), 'detection' (``boxes``, ``scores``, ``labels`` and,
            where the model has them, ``masks``) or 'features' (maps of a detector's neck or head).
        classes: Names of the classes, by label.
        palette: Red, green and blue, 0 to 255, of each class.
        mean: Mean that the file subtracts from the image itself, one value for each channel or one for all.
        std: Standard deviation by which the file divides then, in the same form.
        mean_and_std_are_of: Order of the channels of ``mean`` and ``std``: 'RGB', 'BGR', 'grey' or 'channels as in the
            data'. The input of the file is RGB in any case, if it has three channels.
        size: Height and width in pixels for which the file was exported.
        size_step: The file takes sides that are multiples of this number of pixels; None if it takes only ``size``.
        height: Bounds of the height.
        width: Bounds of the width.
        resize: How the config's test pipeline resizes images; None if it does not.
        pad_divisor: The image is to be padded at the right and at the bottom, with the mean of each channel, until its
            sides are multiples of this number. 1 where nothing is to be padded, also because the file does it itself.
        reduce_zero_label: Whether the dataset's annotations count the classes from 1, with 0 for pixels of no class.
        window: The windows by which a segmentor is tested; None where it takes the whole image.
        align_corners: Whether logits are resized to the size of the original image with ``align_corners=True``.
        binary_threshold: Probability from which a pixel is of class 1, of a segmentor with one map of logits; None for
            one that has a map for each class, and takes the largest.
        score_threshold: Boxes whose class has a lower probability are not in the outputs. FCOS multiplies it by the
            centerness later. None where ``task`` is not 'detection', as for the other fields from here on.
        nms_iou_threshold: Two boxes of a class that overlap by more than this intersection over union become one; None
            if all boxes are kept, as by Mask2Former.
        mask_threshold: Probability from which a pixel belongs to a mask; None if the file has no masks.
        max_detections: Largest number of detections of one image; None if there is no bound.
    """
    task: str
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, int, int], ...]
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    mean_and_std_are_of: str
    size: Tuple[int, int]
    size_step: Optional[int]
    height: Bounds
    width: Bounds
    resize: Optional[Resize]
    pad_divisor: int
    reduce_zero_label: bool
    window: Optional[Window]
    align_corners: bool
    binary_threshold: Optional[float]
    score_threshold: Optional[float] = None
    nms_iou_threshold: Optional[float] = None
    mask_threshold: Optional[float] = None
    max_detections: Optional[int] = None

    def takes(self, height: int, width: int) -> bool:
        """Returns whether the file takes images of this height and width in pixels."""
        if self.size_step is None:
            return (height, width) == self.size
        return (height in self.height and width in self.width
                and height % self.size_step == 0 and width % self.size_step == 0)


def read_metadata(mapping: Mapping[str, str]) -> Metadata:
    """Reads the metadata of a file that ``mmlk export`` wrote.

    Args:
        mapping: Texts by key. Keys that are not of :class:`Metadata` are ignored.

    Returns:
        The metadata.

    Raises:
        ValueError: A key is missing, or its value is not what is expected.
    """
    def need(key: str) -> None:
        if key not in mapping:
            raise ValueError(f"the file has no '{key}' in its metadata: it was not written by this version of mmlk "
                             'export; export it again')

    def take(key: str, convert: Callable[[Any], Any], optional: bool = False) -> Any:
        need(key)
        try:
            value = json.loads(mapping[key])
            return None if value is None and optional else convert(value)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{key}' in the metadata of the file cannot be read: {str(mapping[key])[:80]!r}; export "
                             'the file again') from error

    def text(key: str) -> str:
        need(key)
        return str(mapping[key])

    task = text('task')
    if task not in TASKS:
        raise ValueError(f"'task' in the metadata of the file is {task[:80]!r}; there is {', '.join(TASKS)}")
    bounds = take('size_bounds', lambda value: [Bounds(_whole(least), most if most is None else _whole(most))
                                                for least, most in (value['height'], value['width'])])
    detection = {}
    if task == 'detection':
        detection = dict(score_threshold=take('score_threshold', _number),
                         nms_iou_threshold=take('nms_iou_threshold', _number, optional=True),
                         mask_threshold=take('mask_threshold', _number, optional=True),
                         max_detections=take('max_detections', _whole, optional=True))
    metadata = Metadata(
        task=task, classes=take('classes', lambda value: tuple(map(_text, value))),
        palette=take('palette', lambda value: tuple((_byte(r), _byte(g), _byte(b)) for r, g, b in value)),
        mean=take('mean', lambda value: tuple(map(_number, value))),
        std=take('std', lambda value: tuple(map(_number, value))), mean_and_std_are_of=text('mean_and_std_are_of'),
        size=take('size', _pair), size_step=take('size_step', _whole, optional=True), height=bounds[0], width=bounds[1],
        resize=take('resize', lambda value: Resize(_pair(value['scale']), _flag(value['keep_ratio'])), optional=True),
        pad_divisor=take('pad_divisor', _whole), reduce_zero_label=take('reduce_zero_label', _flag),
        window=take('window', lambda value: Window(_pair(value['crop_size']), _pair(value['stride'])), optional=True),
        align_corners=take('align_corners', _flag), binary_threshold=take('binary_threshold', _number, optional=True),
        **detection)
    if len(metadata.palette) != len(metadata.classes):
        raise ValueError(f'the metadata of the file name {len(metadata.classes)} classes and {len(metadata.palette)} '
                         'colours; export the file again')
    return metadata


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(value)
    return float(value)


def _whole(value: Any) -> int:
    """Returns a number of pixels or of detections."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(value)
    return value


def _byte(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        raise ValueError(value)
    return value


def _pair(value: Any) -> Tuple[int, int]:
    first, second = value
    return _whole(first), _whole(second)
