"""Exports a trained checkpoint to a file that runs without this toolbox.

The file gets its name only after its outputs have been compared with those of the model.

What is in the file, in any format:

- The model in inference form: parallel branches merged, BatchNorm folded into convolutions, no auxiliary head.
- One input, ``images``, float32 (batch, 3, height, width): RGB, values 0 to 255. The normalisation of the config and
  its order of channels are inside; resizing is not. The constants are in the metadata too. A model of another number of
  channels takes them in the order of its data.
- Of a segmentor, ``labels``, int64 (batch, height, width), the class of every pixel, and ``logits``, float32
  (batch, classes, height, width), from which it is taken.
- Of a detector, end to end in ONNX: ``boxes``, float32 (detections, 4), left, top, right and bottom in pixels of the
  input; ``scores``, float32 (detections), the highest first; ``labels``, int64 (detections); and, if the model has
  them, ``masks``, bool (detections, height, width). One image at a time, which the file pads as the config does.
- Of a detector with the outputs 'features': of a one-stage detector, what its head makes of each level,
  ``cls_score_0``, ..., ``bbox_pred_0``, ...; of any other, ``feature_0``, ..., the maps of its neck, the finest first.
- Metadata as text: config, checkpoint, versions, and what :mod:`mmlk.deploy.metadata` reads. ONNX has metadata
  properties for it; the two formats of PyTorch have ``metadata.json`` as an extra file.
"""
import functools
import inspect
import math
import os
import os.path as osp
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Type, Union

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmlk import weights
from mmlk.analysis.panels import distinct_palette
from mmlk._files import whole
from mmlk._types import type_name, type_of
from mmlk.datasets.check import datasets
from mmlk.datasets.images import read_image
from mmlk.engine.network import build_network, check_backbone, check_dense, in_channels
from mmlk.preprocessors import Normalization
from mmlk.reparam import MergeableBranches, merge
from mmlk.reparam.folding import fold_norms
from mmlk.weights.read import read_weights

from . import formats
from .detection import DetectionComparison, detect, end_to_end, fold_head_norms
from .detection_ops import pad_to_multiples
from .formats import FORMATS, OPSETS, Bounds, Graph, RunBatch

Size = Tuple[int, int]

OUTPUTS = ('detections', 'features')  # of a detector
MOST_PIXELS = 1e-3  # maximum fraction of pixels whose label may differ, because two classes have nearly equal logits
TURNS = 5  # number of times that the file and the model are timed


def _window_attentions(model: nn.Module) -> List[nn.Module]:
    """Returns the window attention modules of Swin, in mmseg's and mmdet's implementations."""
    return [module for module in model.modules() if type(module).__name__ == 'ShiftWindowMSA']


def _window_reverse(window_size: int, windows: Tensor, height: int, width: int) -> Tensor:
    """Converts windows of Swin, (N * windows, window_size, window_size, C), to maps, (N, height, width, C).

    The toolboxes' own function computes N as a Python number, which would fix the batch size in the exported file.
    """
    rows, columns = height // window_size, width // window_size
    x = windows.view(-1, rows, columns, window_size, window_size, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


class Exportable(nn.Module):
    """Base class of modules that compute a model's outputs from images, to be exported.

    Args:
        model: The merged model. It is changed in-place: parts that are not used are deleted.
        channels: Number of channels of the images.

    Shape:
        Input: (N, C, H, W), values from 0 to 255; three channels are RGB. Output: a tuple of tensors.

    Raises:
        ValueError: The model's data preprocessor is for another number of channels.
    """
    task = 'features'  # as in mmlk.deploy.metadata
    pads = False  # whether the module pads images, as the config does, by itself

    def __init__(self, model: nn.Module, channels: int = 3):
        super().__init__()
        normalization = Normalization.of_preprocessor(model.data_preprocessor, channels)
        mean, std = normalization.tensors(torch.empty(0))
        for name, values in dict(mean=mean, std=std).items():
            if len(values) not in (1, channels):
                raise ValueError(f'the backbone takes images of {channels} channels, and the {name} of '
                                 f'data_preprocessor has {len(values)}')
        for attention in _window_attentions(model):
            attention.window_reverse = functools.partial(_window_reverse, attention.window_size)
        self.network = model
        self.channels, self.bgr = channels, normalization.bgr
        self.register_buffer('mean', mean)
        self.register_buffer('std', std)

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        return self.outputs(self.network, self.normalized(images))

    def normalized(self, images: Tensor) -> Tensor:
        """Returns the input of the network."""
        return ((images.flip(1) if self.bgr else images) - self.mean) / self.std

    @staticmethod
    def outputs(model: nn.Module, inputs: Tensor) -> Tuple[Tensor, ...]:
        """Returns the outputs of the model, merged or not, for normalized images."""
        raise NotImplementedError

    def names(self, outputs: Sequence[Tensor]) -> List[str]:
        """Returns a name for each output."""
        raise NotImplementedError

    def facts(self) -> Dict[str, object]:
        """Returns metadata about the input: shape, channel order, mean and standard deviation."""
        return dict(input=f'images: float32 (batch, {self.channels}, height, width), {order_of(self.channels)}, values '
                    '0 to 255; normalised inside',
                    mean=self.mean.flatten().tolist(), std=self.std.flatten().tolist(),
                    mean_and_std_are_of='BGR' if self.bgr else order_of(self.channels))


def order_of(channels: int) -> str:
    """Returns the channel order of the input of an exported file, as text."""
    return {1: 'grey', 3: 'RGB'}.get(channels, 'channels as in the data')


class Segmentation(Exportable):
    """Exports a segmentor of mmseg. The outputs are labels, (N, H, W), and logits, (N, C, H, W)."""
    task = 'segmentation'

    def __init__(self, model: nn.Module, channels: int = 3):
        super().__init__(model, channels)
        model.auxiliary_head = None

    @staticmethod
    def outputs(model: nn.Module, inputs: Tensor) -> Tuple[Tensor, Tensor]:
        size = inputs.shape[2:]
        logits = model.encode_decode(inputs, [dict(img_shape=size, pad_shape=size, ori_shape=size)])
        if logits.shape[1] > 1:
            return logits.argmax(1), logits
        return (logits.sigmoid() > model.decode_head.threshold).long().squeeze(1), logits  # as mmseg decides

    def names(self, outputs: Sequence[Tensor]) -> List[str]:
        return ['labels', 'logits']


class Detection(Exportable):
    """Exports a detector of mmdet end to end, for one image at a time.

    Shape:
        Input: (1, C, H, W). Output: boxes, (N, 4), scores, (N,), labels, (N,), and, if the model has them, masks,
        (N, H, W).

    Raises:
        ValueError: The model has a part that :func:`mmlk.deploy.detection.end_to_end` refuses.
    """
    task = 'detection'
    pads = True

    def __init__(self, model: nn.Module, channels: int = 3):
        super().__init__(model, channels)
        self.thresholds = end_to_end(model)
        self.folded = fold_head_norms(model)
        self.divisor = _divisor(model.data_preprocessor)
        self.pad_value = float(getattr(model.data_preprocessor, 'pad_value', 0))

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        height, width = images.shape[2:]
        inputs = self.normalized(images)
        if self.divisor == 1:
            pass
        elif isinstance(height, int) and isinstance(width, int):
            inputs = nn.functional.pad(inputs, (0, -width % self.divisor, 0, -height % self.divisor),
                                       value=self.pad_value)
        else:
            inputs = pad_to_multiples(inputs, self.divisor, self.pad_value)
        return detect(self.network, inputs, (height, width))

    def names(self, outputs: Sequence[Tensor]) -> List[str]:
        return ['boxes', 'scores', 'labels', 'masks'][:len(outputs)]

    def facts(self) -> Dict[str, object]:
        shape = f'(1, {self.channels}, height, width)'
        return dict(super().facts(), input=f'images: float32 {shape}, {order_of(self.channels)}, values 0 to 255; '
                    'normalised and padded inside', **self.thresholds._asdict())


class DenseDetection(Exportable):
    """The maps of the head of a one-stage detector of mmdet: all levels of the scores, then all of the boxes, ..."""

    @staticmethod
    def outputs(model: nn.Module, inputs: Tensor) -> Tuple[Tensor, ...]:
        return tuple(level for levels in model(inputs, mode='tensor') for level in levels)

    def names(self, outputs: Sequence[Tensor]) -> List[str]:
        levels = self.network.bbox_head.prior_generator.num_levels
        kinds = ['cls_score', 'bbox_pred', 'score_factor'][:len(outputs) // levels]  # as mmdet's ``predict_by_feat``
        if len(outputs) not in (2 * levels, 3 * levels):
            return [f'output_{index}' for index in range(len(outputs))]
        return [f'{kind}_{level}' for kind in kinds for level in range(levels)]


class Features(Exportable):
    """Exports the feature maps of a detector's neck, or of its backbone if it has no neck."""

    def __init__(self, model: nn.Module, channels: int = 3):
        super().__init__(model, channels)
        for name, _ in list(model.named_children()):
            if name not in ('backbone', 'neck', 'data_preprocessor'):
                delattr(model, name)

    @staticmethod
    def outputs(model: nn.Module, inputs: Tensor) -> Tuple[Tensor, ...]:
        return tuple(model.extract_feat(inputs))

    def names(self, outputs: Sequence[Tensor]) -> List[str]:
        return [f'feature_{index}' for index in range(len(outputs))]


def kind_of(model: nn.Module, outputs: str = 'features') -> Type[Exportable]:
    """Returns the subclass of :class:`Exportable` that exports a model.

    Args:
        model: A segmentor or a detector.
        outputs: Of a detector, 'detections' or 'features'.

    Raises:
        ValueError: The model is neither a segmentor nor a detector.
    """
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if 'BaseSegmentor' in kinds:
        return Segmentation
    if 'BaseDetector' in kinds and outputs == 'detections':
        return Detection
    if 'SingleStageDetector' in kinds and hasattr(getattr(model, 'bbox_head', None), 'prior_generator'):
        return DenseDetection
    if 'BaseDetector' in kinds:
        return Features
    raise ValueError(f'{type(model).__name__} is neither a segmentor of mmseg nor a detector of mmdet')


def default_size(cfg: Config) -> Optional[Size]:
    """Returns height and width in pixels of a config's test window or, without one, of its training crops."""
    model = cfg.model
    for size in ((model.get('test_cfg') or {}).get('crop_size'), (model.get('data_preprocessor') or {}).get('size'),
                 cfg.get('crop_size')):
        if size:
            return tuple(size)
    return None


def sizes_of(size: Size, step: Optional[int], bounds: Sequence[Bounds] = ((formats.LEAST_SIDE, None), ) * 2) -> str:
    """Returns a text that says which image sizes a file accepts; ``bounds`` are those of height and width."""
    if step is None:
        return f'{size[1]}x{size[0]}'
    ranges = [f'from {least} pixels on' if most is None else f'from {least} to {most} pixels' for least, most in bounds]
    sides = ranges[0] if ranges[0] == ranges[1] else f'height {ranges[0]}, width {ranges[1]}'
    return f"{'any size' if step == 1 else f'multiples of {step} pixels'} {sides}"


@dataclass
class OutputComparison:
    """The differences between the outputs of an exported file and those of the model.

    Args:
        images: How many images were compared.
        sizes: Their heights and widths in pixels.
        differences: The largest absolute difference of each floating-point output, by its name.
        largest: The largest absolute value of the model's output, by its name.
        pixels: How many labels were compared.
        other_labels: How many of them differ.
    """
    images: int = 0
    sizes: List[Size] = field(default_factory=list)
    differences: Dict[str, float] = field(default_factory=dict)
    largest: Dict[str, float] = field(default_factory=dict)
    pixels: int = 0
    other_labels: int = 0

    @property
    def worst(self) -> str:
        """The name of the output with the largest difference, relative to its largest absolute value."""
        return max(self.differences, key=lambda name: self.differences[name] / max(self.largest[name], 1e-30))

    def add(self, name: str, found: Tensor, expected: Tensor) -> None:
        """Adds the comparison of one output of one batch.

        Raises:
            ValueError: The shapes differ.
        """
        if found.shape != expected.shape:
            raise ValueError(f"output '{name}' of the file is {tuple(found.shape)}, where PyTorch's is "
                             f'{tuple(expected.shape)}')
        if not expected.is_floating_point():
            self.pixels += expected.numel()
            self.other_labels += int((found != expected).sum())
            return
        difference = (found - expected).abs().max().item()
        self.differences[name] = float(np.maximum(self.differences.get(name, 0.0), difference))  # a NaN stays
        self.largest[name] = max(self.largest.get(name, 0.0), expected.abs().max().item())

    def check(self, tolerance: float) -> None:
        """Checks that all differences are within rounding.

        Args:
            tolerance: Maximum absolute difference of an output, relative to its largest absolute value.

        Raises:
            ValueError: An output, or the labels of more than ``MOST_PIXELS`` of the pixels, differ by more.
        """
        for name, difference in self.differences.items():
            if not difference <= tolerance * self.largest[name]:
                raise ValueError(f"output '{name}' differs by {difference:.3g} where the largest value is "
                                 f'{self.largest[name]:.3g}, more than {tolerance:g} of it; the file was not kept')
        if self.other_labels > MOST_PIXELS * self.pixels:
            raise ValueError(f'labels differ at {self.other_labels} of {self.pixels} pixels; the file was not kept')

    def __str__(self) -> str:
        name = self.worst
        sizes = ' and '.join(f'{width}x{height}' for height, width in self.sizes)
        text = (f'largest difference {self.differences[name]:.3g}, of {name}, where the largest is '
                f'{self.largest[name]:.3g}')
        if self.pixels:
            text += f'; labels differ at {self.other_labels} of {self.pixels} pixels'
        return f'{text} ({self.images} images at {sizes}, alone and in batches)'


Comparison = Union[OutputComparison, DetectionComparison]


@dataclass
class ExportResult:
    """The exported file, its differences from PyTorch, and the median seconds for one image over ``TURNS`` calls."""
    path: str
    format: str
    channels: int
    size: Size
    step: Optional[int]
    opset: Optional[int]
    facts: Mapping[str, Any]
    outputs: Mapping[str, Tensor]
    merged: int
    folded: Optional[int]
    comparison: Comparison
    seconds: float
    torch_seconds: float

    def __str__(self) -> str:
        opset = f', opset {self.opset}' if self.opset else ''
        lines = [f'wrote {self.path}: {self.format}{opset}, {os.path.getsize(self.path) / 2**20:.1f} MiB',
                 f'input  images: float32 {self._shape((self.channels, *self.size), self._batch)}, '
                 f'{order_of(self.channels)}, '
                 f"values 0 to 255; mean {self._values('mean')} and std {self._values('std')} are inside"]
        if self.step:
            lines.append(f"height and width: {self.facts['sizes']}")
        for name, value in self.outputs.items():
            kind = str(value.dtype).replace('torch.', '')
            lines.append(f'output {name}: {kind} {self._shape(tuple(value.shape[1:]), self._many)}')
        norms = '' if self.folded is None else f', {self.folded} BatchNorms folded into convolutions'
        lines.append(f'{self.merged} blocks of branches merged{norms}')
        lines.append(f'{self.comparison}')
        lines.append(f'latency of one {self.size[1]}x{self.size[0]} image on {torch.get_num_threads()} CPU thread(s), '
                     f'median of {TURNS}: {FORMATS[self.format].runtime} {self.seconds * 1e3:.1f} ms, PyTorch on the '
                     f'same merged model {self.torch_seconds * 1e3:.1f} ms')
        return '\n'.join(lines)

    def _values(self, name: str) -> str:
        return ', '.join(f'{value:g}' for value in self.facts[name])

    @property
    def _batch(self) -> str:
        return '1' if self.facts['task'] == 'detection' else 'batch'

    @property
    def _many(self) -> str:
        return 'detections' if self.facts['task'] == 'detection' else 'batch'

    def _shape(self, shape: Tuple[int, ...], first: str) -> str:
        if self.step is None or len(shape) < 2:
            return f"({', '.join(map(str, (first, *shape)))})"
        height, width = ('height', 'width') if shape[-2:] == self.size else (
            f'height / {round(self.size[0] / shape[-2])}', f'width / {round(self.size[1] / shape[-1])}')
        return f"({', '.join(map(str, (first, *shape[:-2], height, width)))})"


def export(cfg: Config, checkpoint: str, out: str, images: Sequence[Path], format: str = 'onnx',
           size: Optional[Size] = None, dynamic_size: bool = False, opset: Optional[int] = None,
           tolerance: float = 1e-3, say: Callable[[str], object] = lambda text: None,
           outputs: Optional[str] = None) -> ExportResult:
    """Exports a segmentor or a detector to a file, and compares their outputs.

    The written file is opened again and run on each image (resized), on a batch of two and, with ``dynamic_size``, on
    images of a second size. The outputs are compared with those of the trained model, whose branches are not merged,
    with its own data preprocessor. A detector end to end is compared by :class:`DetectionComparison`, image by image.

    Args:
        cfg: Config of the model. Not changed.
        checkpoint: Path of a checkpoint of the whole model.
        out: Path of the file to write, with the suffix of the format.
        images: Photographs on which the outputs are compared.
        format: A key of ``formats.FORMATS``.
        size: Height and width in pixels. The default is :func:`default_size`.
        dynamic_size: Whether the file also accepts images of other sizes.
        opset: Opset version for ONNX. The default is that of torch's exporter.
        tolerance: Maximum absolute difference of an output, relative to its largest absolute value.
        say: Called with a text before each step.
        outputs: Of a detector, 'detections' (end to end, ONNX only) or 'features' (the maps of its neck or head). The
            default is 'detections' for ONNX, 'features' for the other formats.

    Returns:
        The file, the differences and the time for one image.

    Raises:
        ValueError: The arguments are invalid, packages are missing, the model cannot be exported, or the outputs of the
            file differ from those of the model. No file is written then, and an existing file is not changed.
    """
    check_dense(cfg)
    size = _check(cfg, out, format, size, opset, outputs)
    check_backbone(cfg)
    channels = in_channels(cfg)
    photographs = [_photograph(path, size, channels) for path in images]

    say('building the model')
    model = build_network(cfg).eval()
    kind = kind_of(model, outputs or ('detections' if format == 'onnx' else 'features'))
    if kind is Segmentation and outputs:
        raise ValueError(f"outputs='{outputs}' is of detectors; this is a segmentor")
    if kind is Detection:
        end_to_end(model)
    divisor = 1 if kind.pads else _divisor(model.data_preprocessor)
    if any(length % divisor for length in size):
        raise ValueError(f'the config pads images to multiples of {divisor} pixels, and the file will not: '
                         f'{size[1]}x{size[0]} is none')
    if dynamic_size and _window_attentions(model):
        raise ValueError("Swin's windows are laid out in Python, by the size of the image: a file of it takes one "
                         'size. Export without --dynamic-size, one file for each size')
    weights.load(model, checkpoint)
    model.requires_grad_(False)
    blocks = sum(isinstance(module, MergeableBranches) and not module.merged for module in model.modules())
    subject = kind(merge(model), channels).eval()
    example = torch.stack([photographs[0], photographs[-1].flip(2)][:1 if kind is Detection else 2]).float()
    say('folding BatchNorm')
    try:
        folded = fold_norms(subject, example) + getattr(subject, 'folded', 0)
    except Exception:  # a model that torch.export cannot draw; the file says the rest
        folded = None
    with torch.no_grad():
        results = subject(example)
    names = subject.names(results)
    bounds: Sequence[formats.Bounds] = [(formats.LEAST_SIDE, None)] * 2
    if dynamic_size:
        bounds = bounds_of(subject, example)
    steps: List[Optional[int]] = [None]
    if dynamic_size:  # where not every size can be had, every multiple of what most models divide an image by may be
        steps = [divisor] + [32] * (divisor == 1 and not any(length % 32 for length in size))

    known = _facts(cfg, checkpoint, subject, model, size)

    def attempt(step: Optional[int]) -> Tuple[RunBatch, Comparison, Mapping[str, object]]:
        """Write the file for images of one size, or of all that are multiples of the step, and compare it."""
        say(f'writing {format}')
        sides = {name: [side, side] if step is None else [-(-least // step) * step, most]
                 for name, side, (least, most) in zip(('height', 'width'), size, bounds)}
        graph = Graph(subject, example, step, 'images', names, dict(
            known, sizes=sizes_of(size, step, bounds), size_step=step, size_bounds=sides), bounds=bounds)
        formats.write_graph(graph, partial, format, opset)
        say('comparing with PyTorch')
        run = formats.open_exported(partial, format)
        others = [] if step is None else [_other_size(example, step, bounds)]
        alone = [image[None] for image in photographs]
        if kind is Detection:
            found = compare_detections(run, model, [*alone, *others])
            found.check()
            return run, found, graph.metadata
        comparison = compare_outputs(run, model, kind, names, [*alone, example.byte(), *others])
        comparison.check(tolerance)
        return run, comparison, graph.metadata

    with whole(out) as partial:
        for step in steps:
            try:
                run, comparison, facts = attempt(step)
                break
            except ValueError:
                if step == steps[-1]:
                    raise
        written_opset = formats.opset_of(partial) if format == 'onnx' else None
        if opset and written_opset != opset:
            raise ValueError(f"torch's exporter wrote opset {written_opset}, not {opset}; the file was not kept")
        say('timing')
        seconds, torch_seconds = _latency(run, subject, photographs[0][None].float())
    return ExportResult(out, format, channels, size, step, written_opset, facts, dict(zip(names, results)), blocks,
                        folded, comparison, seconds, torch_seconds)


def compare_outputs(run: RunBatch, model: nn.Module, kind: Type[Exportable], names: Sequence[str],
                    batches: Sequence[Tensor]) -> OutputComparison:
    """Compares the outputs of an exported file and of the trained model.

    Args:
        run: The function that runs the file, of :func:`mmlk.deploy.formats.open_exported`.
        model: The trained model.
        kind: The subclass of :class:`Exportable` with which the file was exported.
        names: Names of the outputs.
        batches: Images, (N, C, H, W), uint8. Three channels are RGB.

    Returns:
        The differences.

    Raises:
        ValueError: The file does not accept a batch, or an output has another shape.
    """
    comparison = OutputComparison(sum(map(len, batches)), list(dict.fromkeys(tuple(b.shape[2:]) for b in batches)))
    for batch in batches:
        expected = reference(model, kind, batch)
        found = _found(run, batch)
        for name, ours, theirs in zip(names, found, expected):
            comparison.add(name, ours, theirs)
    return comparison


def compare_detections(run: RunBatch, model: nn.Module, images: Sequence[Tensor]) -> DetectionComparison:
    """Compares the detections of an exported file and of the trained model, by the model's own ``predict``.

    Args:
        run: The function that runs the file, of :func:`mmlk.deploy.formats.open_exported`.
        model: The trained model.
        images: Each (1, C, H, W), uint8. Three channels are RGB.

    Returns:
        The differences.

    Raises:
        ValueError: The file does not accept an image, or its outputs are not those of a detector.
    """
    comparison = DetectionComparison()
    for image in images:
        comparison.add(_found(run, image), predicted(model, image), tuple(image.shape[2:]))
    return comparison


@torch.no_grad()
def predicted(model: nn.Module, image: Tensor) -> Tuple[Tensor, ...]:
    """Returns the boxes, scores, labels and, if it has them, masks that a detector of mmdet predicts in one image."""
    from mmdet.structures import DetDataSample
    shape = tuple(image.shape[2:])
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
    image = image.flip(1) if image.shape[1] == 3 else image
    data = model.data_preprocessor(dict(inputs=list(image), data_samples=[sample]), False)
    found = model.predict(data['inputs'], data['data_samples'], rescale=True)[0].pred_instances
    return (found.bboxes, found.scores, found.labels, *([found.masks] if 'masks' in found else []))


def _found(run: RunBatch, batch: Tensor) -> List[Tensor]:
    """Returns the outputs of an exported file for images, uint8."""
    try:
        return run(batch.float())
    except Exception as error:  # of any kind that a runtime has
        count, _, height, width = batch.shape
        raise ValueError(f'the file does not take {count} image(s) of {width}x{height}: {type(error).__name__}: '
                         f'{str(error).strip()[:400]}') from error


@torch.no_grad()
def reference(model: nn.Module, kind: Type[Exportable], images: Tensor) -> Tuple[Tensor, ...]:
    """Returns the outputs of the trained model, with its own data preprocessor, which takes BGR images."""
    from mmengine.structures import BaseDataElement
    samples = [BaseDataElement() for _ in images]
    images = images.flip(1) if images.shape[1] == 3 else images
    inputs = model.data_preprocessor(dict(inputs=list(images), data_samples=samples), False)['inputs']
    return kind.outputs(model, inputs)


def _check(cfg: Config, out: str, format: str, size: Optional[Size], opset: Optional[int],
           outputs: Optional[str]) -> Size:
    """Checks the arguments, and returns the height and width of the images."""
    if outputs not in (None, *OUTPUTS):
        raise ValueError(f"there are no outputs '{outputs}'; there is {', '.join(OUTPUTS)}")
    if outputs == 'detections' and format != 'onnx':
        raise ValueError(f'detections end to end are written in onnx only, not in {format}')
    if format not in FORMATS:
        raise ValueError(f"there is no format '{format}'; there is {', '.join(FORMATS)}")
    if osp.splitext(out)[1] != FORMATS[format].suffix:
        raise ValueError(f'a file of the format {format} ends in {FORMATS[format].suffix}, got {out}')
    missing = formats.lacking(format)
    if missing:
        raise ValueError(f"{format} needs packages that are not installed: pip install {' '.join(missing)}")
    if opset is not None and format != 'onnx':
        raise ValueError(f'an opset is of ONNX; {format} has none')
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(f"torch's exporter writes opsets {OPSETS[0]} to {OPSETS[1]}, got {opset}")
    size = size or default_size(cfg)
    if size is None:
        raise ValueError('the config names no size of its images; say which the file is for')
    return size


def _photograph(path: Path, size: Size, channels: int) -> Tensor:
    """Returns an image as (channels, *size), uint8. Three channels are RGB."""
    return torch.from_numpy(read_image(path, size, channels).transpose(2, 0, 1))


def _divisor(preprocessor: nn.Module) -> int:
    """Returns the number of which the height and width of all test images of the model are multiples."""
    test = getattr(preprocessor, 'test_cfg', None) or {}  # of mmseg, which has a divisor of 1 beside it
    return test.get('size_divisor') or getattr(preprocessor, 'pad_size_divisor', None) or 1


def bounds_of(subject: Exportable, images: Tensor) -> List[Bounds]:
    """Returns the smallest and largest height and width in pixels of a file that is to take several sizes.

    A detector that pads images takes any size. The maps of one that does not, such as SSD, become single elements along
    an axis, for which PyTorch's exporter makes special cases: bounds within which the last map is one, or within which
    none is, as for ``images``.
    """
    if not isinstance(subject, Detection):
        return [(formats.LEAST_SIDE, None)] * 2
    if subject.divisor > 1:
        return [(subject.divisor + 1, None)] * 2
    with torch.no_grad():
        maps = subject.network.extract_feat(images)
    bounds: List[Bounds] = []
    for side, cells in zip(images.shape[2:], maps[-1].shape[2:]):
        stride = 2**math.ceil(math.log2(side / cells))
        bounds.append((stride // 2 + 1, stride) if cells == 1 else (max(formats.LEAST_SIDE, stride + 1), None))
    return bounds


def _other_size(images: Tensor, step: int, bounds: Sequence[Bounds]) -> Tensor:
    """Resizes images to a second size, which shares no larger divisor than ``step``, if possible."""
    height, width = images.shape[2:]
    size = []
    for length, (least, most) in zip((height * 5 // 4 + 3, width * 3 // 4 + 1), bounds):
        length = -(-max(length, least) // step) * step
        size.append(length if most is None else min(length, most // step * step))
    return torch.nn.functional.interpolate(images, size, mode='bilinear').round().byte()


def _latency(run: RunBatch, subject: nn.Module, image: Tensor) -> Tuple[float, float]:
    """Returns the median seconds of the exported file and of PyTorch, timed in turns on a CPU."""
    from mmlk.ops.benchmark import turns

    def with_torch():
        with torch.no_grad():
            return subject(image)

    calls = {'file': lambda: run(image), 'PyTorch': with_torch}
    seconds = turns(calls, torch.device('cpu'), most=TURNS, least=TURNS)
    return statistics.median(seconds['file']), statistics.median(seconds['PyTorch'])


def _facts(cfg: Config, checkpoint: str, subject: Exportable, model: nn.Module, size: Size) -> Dict[str, object]:
    """Returns the metadata of the exported file, as :mod:`mmlk.deploy.metadata` reads them, without ``size_step``."""
    from mmlk import __version__
    from mmlk.analysis import cam
    meta = read_weights(checkpoint).get('meta')
    known = (meta.get('dataset_meta') if isinstance(meta, dict) else None) or {}
    dataset = next((dataset for _, dataset in datasets(cfg, 'test')), {})
    kind = type_of(dataset, 'DATASETS', cfg.get('default_scope'))
    classes = list(known.get('classes') or cam.class_names_of(cfg, model))
    test = cfg.model.get('test_cfg') or {}
    window = None
    if test.get('mode') == 'slide':
        window = dict(crop_size=list(test['crop_size']), stride=list(test['stride']))
    head = getattr(model, 'decode_head', None)
    binary = subject.task == 'segmentation' and head.out_channels == 1
    return dict(subject.facts(), task=subject.task, classes=classes,
                palette=palette_of(len(classes), known, dataset.get('metainfo') or {}, getattr(kind, 'METAINFO', {})),
                size=list(size), resize=_resize(dataset.get('pipeline') or cfg.get('test_pipeline') or ()),
                pad_divisor=1 if subject.pads else _divisor(model.data_preprocessor), window=window,
                reduce_zero_label=bool(known.get('reduce_zero_label', reduces_zero_label(dataset, kind))),
                align_corners=bool(getattr(model, 'align_corners', False)),
                binary_threshold=float(head.threshold) if binary else None, config=osp.basename(cfg.filename or ''),
                checkpoint=osp.basename(checkpoint), mmlk=__version__, torch=torch.__version__)


def palette_of(classes: int, *sources: Mapping[str, object]) -> List[List[int]]:
    """Returns the colours, [red, green, blue], of the first source that has one for each class; else different hues."""
    for source in sources:
        palette = source.get('palette')
        if isinstance(palette, (list, tuple, np.ndarray)) and len(palette) == classes:
            return [[int(value) for value in colour] for colour in palette]
    return [list(colour) for colour in distinct_palette(classes)]


def _resize(pipeline: Sequence[Mapping]) -> Optional[Dict[str, object]]:
    """Returns scale, [width, height], and keep_ratio of the step that resizes images; None if there is none."""
    for step in pipeline:
        if type_name(step) == 'Resize' and step.get('scale'):
            scale = step['scale']
            return dict(scale=[scale] * 2 if isinstance(scale, int) else list(scale),
                        keep_ratio=bool(step.get('keep_ratio', False)))
    return None


def reduces_zero_label(dataset: Mapping, kind: Optional[type]) -> bool:
    """Returns whether a dataset of mmseg counts classes from 1; by default as its class does."""
    if 'reduce_zero_label' in dataset or kind is None:
        return dataset.get('reduce_zero_label', False)
    argument = inspect.signature(kind).parameters.get('reduce_zero_label')
    return argument is not None and argument.default is True
