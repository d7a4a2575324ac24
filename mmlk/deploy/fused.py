"""Convolutions and linear layers for inference on a CPU, with packed weights and with what follows computed inside.

oneDNN, PyTorch's library for convolutions on CPUs, can add three things to a convolution while its output is still in
registers: the bias, an activation, and another map (the shortcut of a residual block). Each of them would otherwise
read and write the whole map once more. It can also use weights in a blocked order that is made once ("packed"), instead
of making it in every call. PyTorch has operators for both, ``torch.ops.mkldnn``, which its compiler uses. The modules
of this file use them directly: they need no compiler and take images of any size.

Which order oneDNN reads a weight in depends on the size of the map and on the number of threads. A weight in another
order is put into the right one in every call, which can take ten times as long as the convolution. So the order is
looked up for each size (:func:`_packed_for`), and a weight is packed again where it is another one.

All maps are in channels_last. A map (N, C, H, W) then is a matrix (N * H * W, C) in memory, one row per pixel, and a
1x1 convolution and a linear layer are the same product of matrices.
"""
from collections import OrderedDict
from typing import Dict, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

#: Elements of a hidden map from which on :class:`FeedForward` works on parts of the map. The allocator of glibc returns
#: blocks of 32 MiB and more to the operating system, so that each use of such a block costs a page fault for every
#: 4 KiB. That takes as long as the product itself.
_LARGE = 1 << 23
_PART = 1 << 21  # elements of the hidden map of one part
_MAX_ORDERS = 2  # packed copies of a weight that are kept: those of the orders that were used last
_MAX_SIZES = 1 << 16  # of maps whose orders are remembered


class Activation(NamedTuple):
    """An activation in oneDNN's terms: its name, its scalars and its algorithm."""
    name: str = 'none'
    scalars: Tuple[Optional[float], ...] = ()
    algorithm: str = ''


NONE = Activation()


def available(dtype: torch.dtype) -> bool:
    """Returns whether this build of PyTorch on this processor has the operators for maps of a dtype."""
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not all(
            hasattr(operators, f'_{name}') for name in ('convolution_pointwise', 'convolution_pointwise_',
                                                        'reorder_convolution_weight', 'get_mkldnn_serialized_md')):
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported()


#: A description of the order in which oneDNN reads a weight, by the shape and dtype of the weight, the settings of the
#: convolution, the shape of the input and the number of threads.
_orders: Dict[tuple, bytes] = {}


class FusedConv(nn.Module):
    """A convolution with packed weights, followed by an activation or by the addition of another map.

    Args:
        weight: (C_out, C_in / groups, kh, kw), in the dtype of the maps.
        bias: (C_out,) or None.
        stride, padding, dilation, groups: As of ``nn.Conv2d``, two numbers each.
        size: Expected shape of the input, (N, C_in, H, W), for which the weight is packed at first.

    Shape:
        Input: (N, C_in, H, W), and optionally a map to add, of the output's shape. Output: (N, C_out, H', W') in
        channels_last.
    """

    def __init__(self, weight: Tensor, bias: Optional[Tensor], stride: Sequence[int] = (1, 1),
                 padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
                 size: Optional[Sequence[int]] = None):
        super().__init__()
        self.settings = list(padding), list(stride), list(dilation), groups
        self.size = None if size is None else tuple(size)
        self.shape = tuple(weight.shape)
        self.plain = weight.detach(), None if bias is None else bias.detach()
        self.activation = NONE
        self.inplace = False  # whether the sum with ``other`` may be written to the memory of ``other``
        self.packed: 'OrderedDict[bytes, Tensor]' = OrderedDict()  # by order, the one used last at the end

    @property
    def out_channels(self) -> int:
        return self.shape[0]

    @property
    def pointwise(self) -> bool:
        """Whether every pixel of the output depends on the same pixel of the input only."""
        padding, stride, _, groups = self.settings
        return self.shape[2:] == (1, 1) and groups == 1 and {*stride} == {1} and {*padding} == {0}

    def scale(self, factor: Tensor) -> None:
        """Multiplies each output channel by a factor, (C_out,)."""
        weight, bias = self.plain
        self.plain = weight * factor.reshape(-1, 1, 1, 1), None if bias is None else bias * factor

    def pack(self) -> None:
        """Packs the weight for the expected size. Afterwards the plain one is not kept, and nothing can be changed."""
        weight, self.bias = self.plain
        packed = self._pack(weight.contiguous(), self.size)
        self.packed[_order_of(packed)] = packed
        self.plain = (weight.new_empty(0), None)

    def drop_other_sizes(self) -> None:
        """Keeps, of the copies of a packed weight, the one for the expected size only."""
        if self.size is not None:
            wanted = self._packed_for(self.size)
            self.packed = OrderedDict({_order_of(wanted): wanted})

    def _pack(self, weight: Tensor, size: Optional[Sequence[int]]) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *self.settings, size)

    def _packed_for(self, size: Tuple[int, ...]) -> Tensor:
        """Returns the weight in the order that oneDNN reads it in for an input of this size."""
        padding, stride, dilation, groups = self.settings
        last = next(reversed(self.packed.values()))
        key = (self.shape, last.dtype, *padding, *stride, *dilation, groups, size, torch.get_num_threads())
        order = _orders.get(key)
        if order in self.packed:
            self.packed.move_to_end(order)
            return self.packed[order]
        packed = self._pack(last.to_dense(), size)
        order = _order_of(packed)
        if len(_orders) >= _MAX_SIZES:
            _orders.clear()
        _orders[key] = order
        packed = self.packed.setdefault(order, packed)
        self.packed.move_to_end(order)
        while len(self.packed) > _MAX_ORDERS:
            self.packed.popitem(last=False)
        return packed

    def forward(self, x: Tensor, other: Optional[Tensor] = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        name, scalars, algorithm = self.activation
        operators, packed = torch.ops.mkldnn, (self._packed_for(tuple(x.shape)), self.bias, *self.settings)
        if other is None:
            return operators._convolution_pointwise(x, *packed, name, list(scalars), algorithm)
        after = (None, [], None) if name == 'none' else (name, list(scalars), algorithm)
        if self.inplace and other.is_contiguous(memory_format=torch.channels_last):
            return operators._convolution_pointwise_.binary(other, x, *packed, 'add', 1.0, *after)
        other = other.contiguous(memory_format=torch.channels_last)
        return operators._convolution_pointwise.binary(x, other, *packed, 'add', 1.0, *after)


def _order_of(packed: Tensor) -> bytes:
    """Returns a description of the order of a packed weight."""
    return torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()


def linear(weight: Tensor, bias: Optional[Tensor], rows: Optional[int] = None) -> FusedConv:
    """Returns a linear layer, (C_out, C_in), as a 1x1 convolution over ``rows`` pixels."""
    size = None if rows is None else (1, weight.shape[1], rows, 1)
    return FusedConv(weight[..., None, None], bias, size=size)


def image_of(x: Tensor) -> Tensor:
    """Returns (..., C) as a map (1, C, P, 1) that shares its memory, with P the product of the other sizes."""
    return x.reshape(-1, x.shape[-1]).t()[None, :, :, None]


def pixels_of(x: Tensor) -> Tensor:
    """Returns (N, C, H, W) in channels_last as a matrix (N * H * W, C) that shares its memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class OverLastAxis(nn.Module):
    """A pointwise :class:`FusedConv` over the last axis of a tensor, as ``nn.Linear`` is.

    Shape:
        Input: (..., C_in), and optionally a tensor to add. Output: (..., C_out).
    """

    def __init__(self, conv: FusedConv):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, other: Optional[Tensor] = None) -> Tensor:
        out = self.conv(image_of(x), None if other is None else image_of(other))
        return pixels_of(out).reshape(*x.shape[:-1], -1)


class FeedForward(nn.Module):
    """Two pointwise layers, of which the hidden map is used by nothing else, plus a shortcut.

    If the hidden map is large, parts of the pixels are computed one after the other.

    Args:
        first, second: Pointwise layers. The activation is that of ``first``.
    """

    def __init__(self, first: FusedConv, second: FusedConv):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Adds the two layers' output for ``x``, (N, C_in, H, W), to ``other``, (N, C_out, H, W), in-place.

        The two may be the same tensor.
        """
        if not all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (x, other)):
            return self.second(self.first(x), other)
        hidden = self.first.out_channels
        inputs, outputs = pixels_of(x), pixels_of(other)
        rows = len(inputs) if len(inputs) * hidden < _LARGE else max(_PART // hidden, 1)
        for part, target in zip(inputs.split(rows), outputs.split(rows)):
            self.second(self.first(image_of(part)), image_of(target))
        return other
