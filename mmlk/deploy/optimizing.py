"""Makes a trained network ready for the fastest inference that PyTorch offers without a compiler.

In this order: branches are merged, BatchNorm is folded into convolutions, the dtype is set, and on a CPU the operators
are fused (:mod:`.fusing`). The outputs are compared with those of the network as it was trained.
"""
import copy
import ctypes
import sys
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from mmlk.analysis.latency import tensors_in
from mmlk.ops.choice import measure_at_once
from mmlk.ops.layout import fastest_memory_format
from mmlk.reparam import MergeableBranches, merge
from mmlk.reparam.folding import fold_norms

from . import fused, fusing
from .formats import LEAST_SIDE

#: Maximum difference of an output, relative to its largest absolute value. Rounding of a deep network in bfloat16
#: reaches some hundredths.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 5e-2}
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # the parameters of glibc's mallopt


@dataclass
class Optimization:
    """What :func:`optimize` has done to a network.

    Args:
        merged: Number of merged blocks of branches.
        folded: Number of BatchNorms folded into convolutions; None if the graph could not be recorded.
        fused: Number of operators that each step of :mod:`.fusing` has replaced. Empty if nothing was fused.
        step: Fused are images whose height and width are multiples of this; None for the size of the example only.
        batch: Fused is this number of images only; None for any number.
        reason: Why nothing was fused or folded; empty if something was.
        difference: Largest difference of an output of the example, relative to the largest absolute value of it.
    """
    merged: int
    folded: Optional[int] = None
    fused: Dict[str, int] = field(default_factory=dict)
    step: Optional[int] = None
    batch: Optional[int] = None
    reason: str = ''
    difference: float = 0.0

    def __str__(self) -> str:
        parts = [f'{self.merged} blocks of branches merged']
        if self.folded is not None:
            parts.append(f'{self.folded} BatchNorms folded')
        if self.fused:
            sizes = 'images of the size of the example' if self.step is None else (
                f'images of any size from {LEAST_SIDE} pixels on' if self.step == 1 else
                f'images whose sides are multiples of {self.step} pixels')
            sizes += '' if self.batch is None else f', {self.batch} at a time'
            done = ', '.join(f'{count} {name}' for name, count in self.fused.items() if count)
            parts.append(f'fused for {sizes}: {done}')
        if self.reason:
            parts.append(f'not fused: {self.reason}')
        return '; '.join(parts) + f'; largest difference {self.difference:.2g} of the largest value'


class OptimizedNetwork(nn.Module):
    """A network in inference form. It cannot be trained: ``train()`` raises an error.

    Args:
        network: The network, merged and in its dtype, from images to a tensor, tuple or list. It computes images of
            sizes that the graph does not take.
        graph: The same network as a fused graph, or None.
        step: The graph takes images whose height and width are multiples of this, from ``LEAST_SIDE`` on; None if it
            takes only the size of the example.
        size: Height and width of the example.
        batch: The graph takes this number of images only; None for any number.

    Shape:
        Input: (N, C, H, W) in any floating-point dtype. Output: as of the network, in float32 if the network is in a
        dtype of half precision and the input is in float32.
    """

    def __init__(self, network: nn.Module, graph: Optional[nn.Module], step: Optional[int], size: Tuple[int, int],
                 batch: Optional[int] = None):
        super().__init__()
        self.network, self.graph, self.step, self.size, self.batch = network, graph, step, size, batch
        self.dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
        self.eval()

    def train(self, mode: bool = True) -> 'OptimizedNetwork':
        if mode:
            raise RuntimeError('this network was optimized for inference and cannot be trained any more; train the '
                               'model from which mmlk.deploy.optimize made it, which has not been changed')
        return super().train(False)

    def takes(self, x: Tensor) -> bool:
        """Returns whether the fused graph computes the images ``x``."""
        if self.graph is None or x.device.type != 'cpu' or self.batch not in (None, len(x)):
            return False
        height, width = x.shape[2:]
        if self.step is None:
            return (height, width) == self.size
        return min(height, width) >= LEAST_SIDE and height % self.step == width % self.step == 0

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        given = x.dtype
        x = x.to(self.dtype).contiguous(memory_format=fastest_memory_format(x))
        out = self.graph(x) if self.graph is not None and self.takes(x) else self.network(x)
        return _map(lambda tensor: tensor.to(given).contiguous(), out)


class _Trunk(nn.Module):
    """Everything of a segmentor or detector that is computed of whole images: backbone, neck and, if ``head``, head."""

    def __init__(self, model: nn.Module, head: Optional[nn.Module]):
        super().__init__()
        self.backbone, self.neck, self.head = model.backbone, getattr(model, 'neck', None), head

    def forward(self, x: Tensor) -> Union[Tensor, Tuple[Tensor, ...]]:
        maps = self.backbone(x)
        maps = maps if self.neck is None else self.neck(maps)
        return tuple(maps) if self.head is None else self.head(maps)


def _as_given(logits: Tensor) -> Tensor:
    """Stands for the ``forward`` of a head whose logits were computed together with the backbone."""
    return logits


def optimize(model: nn.Module, example: Tensor, dtype: Optional[torch.dtype] = None) -> nn.Module:
    """Returns a copy of a network that computes the same as fast as possible, and can no longer be trained.

    On a CPU, weights are packed and activations, shortcuts and layer scales are computed inside the convolutions. On a
    GPU, branches are merged, BatchNorm is folded and the dtype is set. Where the graph of a network cannot be recorded,
    that is all that is done on a CPU too, and ``optimization.reason`` says why.

    On Linux, glibc's allocator is told to keep freed memory up to 1 GiB in this process instead of returning it to the
    operating system, which would cost page faults for every large map.

    Args:
        model: A backbone, or a segmentor of mmseg or a detector of mmdet, with trained weights. Not changed.
        example: Normalized images, (N, C, H, W), on the device of the model. The outputs are compared on them, and
            weights are packed for their size. Images of other sizes are computed as well.
        dtype: ``torch.bfloat16`` or ``torch.float16`` to compute the network in that dtype; the outputs stay float32.
            None for the dtype of the model. A detector's heads behind the neck always keep their dtype.

    Returns:
        For a backbone an :class:`OptimizedNetwork`; for a segmentor or detector a model of the same class, whose
        backbone, neck and (of a segmentor) head are one :class:`OptimizedNetwork`. The attribute ``optimization`` says
        what was done (:class:`Optimization`).

    Raises:
        ValueError: The processor does not compute in the dtype, a norm cannot be merged, or the outputs differ by more
            than ``TOLERANCES``.
    """
    if example.dim() != 4:
        raise ValueError(f'example must be images (N, C, H, W), got {tuple(example.shape)}')
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    dtype = own if dtype is None else dtype
    if dtype not in TOLERANCES:
        raise ValueError(f'dtype must be float32, bfloat16 or float16, got {dtype}')
    if example.device.type == 'cpu' and dtype != torch.float32 and not fused.available(dtype):
        raise ValueError(f'this processor does not compute in {str(dtype)[6:]} at full speed; leave dtype at None')
    blocks = sum(isinstance(module, MergeableBranches) and not module.merged for module in model.modules())
    done = Optimization(blocks)
    training = {name: module.training for name, module in model.named_modules()}
    result = merge(model).requires_grad_(False)
    trunk, head = _trunk_of(result)
    reference, _ = _trunk_of(model)
    reference.eval()  # a separate call, because eval() of mmdet's ResNet returns None
    try:
        with torch.no_grad():
            expected = tensors_in(reference(example))
    finally:
        for name, module in model.named_modules():
            module.training = training[name]
    trunk.eval()
    network = _optimized(trunk, example, dtype, done)
    for layer in network.modules():
        if isinstance(layer, fused.FusedConv):
            layer.drop_other_sizes()  # of which one was the second size
    with measure_at_once():
        outputs = tensors_in(network(example))
    done.difference = _largest_difference(expected, outputs, dtype)
    if trunk is result:
        result = network
    else:
        result.backbone = network
        if getattr(result, 'neck', None) is not None:
            result.neck = None
        if head is not None:  # a shallow copy, because the network computes with the head itself
            result.decode_head = copy.copy(head)
            result.decode_head.forward = _as_given
        result.eval()
    result.optimization = done
    _keep_freed_memory()
    return result


def _trunk_of(model: nn.Module) -> Tuple[nn.Module, Optional[nn.Module]]:
    """Returns the part of a model that is optimized, and the head in it, if any."""
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if not kinds & {'BaseSegmentor', 'BaseDetector'} or not isinstance(getattr(model, 'backbone', None), nn.Module):
        return model, None
    head = getattr(model, 'decode_head', None)
    # a head whose ``predict`` is its own, for example one that needs the images' sizes, is not part of the graph
    plain = (isinstance(head, nn.Module) and not isinstance(head, nn.ModuleList)
             and getattr(type(head).predict, '__qualname__', '') == 'BaseDecodeHead.predict')
    return _Trunk(model, head if plain else None), head if plain else None


def _optimized(trunk: nn.Module, example: Tensor, dtype: torch.dtype, done: Optimization) -> OptimizedNetwork:
    """Folds norms and fuses operators of a network in-place, as far as possible."""
    try:
        done.folded = fold_norms(trunk, example)
    except Exception as error:  # of any kind: a model that torch.export cannot record
        done.reason = _first_line(error)
    trunk.to(dtype)
    size = example.shape[2], example.shape[3]
    if example.device.type != 'cpu' or done.reason:
        return OptimizedNetwork(trunk, None, None, size)
    if not fused.available(dtype):
        done.reason = f'PyTorch has no packed convolutions in {str(dtype)[6:]} on this processor'
        return OptimizedNetwork(trunk, None, None, size)
    images = example.to(dtype).contiguous(memory_format=torch.channels_last)
    # any size, multiples of what most networks divide an image by, one size, or one size and number of images
    for step, batch in ((1, True), (32, True), (None, True), (None, False)):
        try:
            graph = fusing.capture(trunk, images, step, batch)
            counts = fusing.fuse(graph, images, batch)
            number = None if batch else len(images)
            network = OptimizedNetwork(trunk, graph, step, size, number)
            if step is not None:
                other = _other_size(images, step)
                with torch.no_grad():
                    _largest_difference(tensors_in(trunk(other)), tensors_in(network(other)), dtype)
        except Exception as error:
            done.reason = _first_line(error)
            continue
        done.fused, done.step, done.batch, done.reason = counts, step, number, ''
        return network
    return OptimizedNetwork(trunk, None, None, size)


def _other_size(images: Tensor, step: int) -> Tensor:
    """Returns images resized to a second size, of which height and width differ from each other and from the first."""
    sides = [-(-LEAST_SIDE // step) * step + extra * step for extra in (1, 3)]
    sides = [side + 4 * step if side in images.shape[2:] else side for side in sides]
    return nn.functional.interpolate(images.float(), sides).to(images).contiguous(memory_format=torch.channels_last)


def _largest_difference(expected: List[Tensor], found: List[Tensor], dtype: torch.dtype) -> float:
    """Returns the largest difference of an output, relative to its largest absolute value.

    Raises:
        ValueError: It is more than rounding.
    """
    worst = 0.0
    for index, (ours, theirs) in enumerate(zip(found, expected)):
        if ours.shape != theirs.shape:
            raise ValueError(f'output {index} of the optimized network is {tuple(ours.shape)}, where it was '
                             f'{tuple(theirs.shape)}')
        difference = (ours.double() - theirs.double()).abs().max().item()
        largest = theirs.abs().max().item()
        if not difference <= TOLERANCES[dtype] * largest:
            raise ValueError(f'output {index} of the optimized network differs by {difference:.3g} where the largest '
                             f'value is {largest:.3g}, more than {TOLERANCES[dtype]:g} of it, so it is not used; '
                             f'computed in {str(dtype)[6:]}')
        worst = max(worst, difference / max(largest, 1e-30))
    return worst


def _map(function: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return function(output)
    if isinstance(output, (tuple, list)):
        return type(output)(_map(function, value) for value in output)
    return output


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0][:200]}' if lines else type(error).__name__


def _keep_freed_memory() -> None:
    """Makes glibc keep freed blocks of up to 1 GiB, where this is glibc."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, 1 << 30)
