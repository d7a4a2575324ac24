"""Deformable convolutions v3 and v4: each output is a weighted sum of samples at positions that the network computes.

For each output pixel and each group of channels there are ``kernel_size`` samples. Without offsets they lie on the grid
of an ordinary convolution. The network gives each of them an offset and a weight, which all channels of the group
share. Samples between pixels are interpolated bilinearly; outside of the map they are zero. There are no weights that
are learned per tap: the linear layers before and after the operator mix the channels.

The samples of a map take as many times its memory as there are taps. They are therefore computed in chunks of rows, and
computed again in the backward pass instead of being saved.

InternImage, Wang et al., CVPR 2023, arXiv:2211.05778, section 3.1; DCNv4, Xiong et al., CVPR 2024, arXiv:2401.06197,
section 3.
"""
from typing import NamedTuple, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .backends.base import compute_dtype, given_dtypes
from .layout import exporting

#: Memory of the samples that are computed at once, in bytes. A single row of one image may take more.
CHUNK_BYTES = 64 * 2**20

Size = Union[int, Sequence[int]]


class _Window(NamedTuple):
    """Where the samples of an output pixel lie; pairs are (vertical, horizontal)."""

    kernel_size: Tuple[int, int]
    stride: Tuple[int, int]
    padding: Tuple[int, int]
    dilation: Tuple[int, int]
    groups: int
    offset_scale: float

    @property
    def taps(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]

    def output_size(self, height: int, width: int) -> Tuple[int, int]:
        rows, columns = ((extent + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
                         for extent, pad, dilation, kernel, stride
                         in zip((height, width), self.padding, self.dilation, self.kernel_size, self.stride))
        return rows, columns

    def starts(self, axis: int, first: int, count: int, like: Tensor) -> Tensor:
        """Returns the positions of the taps without offsets along an axis, (taps, count), in pixels.

        Args:
            axis: 0 for the vertical positions, 1 for the horizontal ones.
            first: Index of the first output row or column.
            count: Number of output rows or columns.
            like: A tensor whose dtype and device the positions have.
        """
        kernel = torch.arange(self.kernel_size[axis], dtype=like.dtype, device=like.device)
        # the official order of the taps is column by column
        kernel = (kernel.repeat(self.kernel_size[1]) if axis == 0 else
                  kernel.repeat_interleave(self.kernel_size[0], output_size=self.taps))
        center = self.dilation[axis] * (self.kernel_size[axis] - 1) // 2
        pixels = torch.arange(count, dtype=like.dtype, device=like.device) + first
        centers = pixels * self.stride[axis] + (center - self.padding[axis])
        # the scale applies to the distance from the centre, the dilation included
        return (kernel * self.dilation[axis] - center)[:, None] * self.offset_scale + centers


def _pair(name: str, value: Size, least: int) -> Tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(f'{name} must be an integer of at least {least}, or two, got {value!r}')
    first, second = pair
    return first, second


def sum_of_samples(maps: Tensor, offset: Tensor, mask: Tensor, first: int, window: _Window) -> Tensor:
    """Returns the output rows that begin with row ``first``.

    Args:
        maps: (N, H, W, C).
        offset: (N, rows, columns, groups * taps * 2).
        mask: (N, rows, columns, groups * taps).
        first: Index of the first row.
        window: Where the samples lie.

    Returns:
        (N, rows, columns, C), computed in float32, or float64 for float64, in the dtype of ``maps``.
    """
    dtype = compute_dtype(maps.dtype)
    (batch, height, width, channels), (rows, columns) = maps.shape, offset.shape[1:3]
    groups, taps = window.groups, window.taps
    width_of_group = channels // groups
    steps = offset.to(dtype).reshape(batch, rows, columns, groups, taps, 2)
    x, y = steps.permute(5, 0, 3, 4, 1, 2).unbind()
    x = x * window.offset_scale + window.starts(1, 0, columns, x)[:, None]
    y = y * window.offset_scale + window.starts(0, first, rows, y)[:, :, None]
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), -1)
    split = maps.to(dtype).reshape(batch, height, width, groups, width_of_group).permute(0, 3, 4, 1, 2)
    samples = F.grid_sample(split.flatten(0, 1), grid.reshape(batch * groups, taps * rows, columns, 2),
                            mode='bilinear', padding_mode='zeros', align_corners=False)
    samples = samples.reshape(batch, groups, width_of_group, taps, rows, columns)
    weights = mask.to(dtype).reshape(batch, rows, columns, groups, 1, taps).permute(0, 3, 4, 5, 1, 2)
    return (samples * weights).sum(3).permute(0, 3, 4, 1, 2).flatten(3).to(maps.dtype)


def _tap_by_tap(maps: Tensor, offset: Tensor, mask: Tensor, window: _Window) -> Tensor:
    """Computes what :func:`sum_of_samples` does for all rows, in a form that ``torch.export`` records for any size.

    Dimensions whose sizes it does not know must not be merged or divided; only those of batch and groups are merged,
    of contiguous maps.
    """
    dtype = compute_dtype(maps.dtype)
    (_, height, width, channels), (rows, columns) = maps.shape, offset.shape[1:3]
    groups, taps = window.groups, window.taps
    split = maps.to(dtype).permute(3, 0, 1, 2).contiguous().unflatten(0, (groups, channels // groups))
    split = split.transpose(1, 2).contiguous().flatten(0, 1)  # (groups * N, channels of a group, H, W)
    steps, weights = (tensor.to(dtype).permute(3, 0, 1, 2).contiguous() for tensor in (offset, mask))
    starts = zip(window.starts(1, 0, columns, split), window.starts(0, 0, rows, split))
    out = None
    for tap, (start_x, start_y) in enumerate(starts):  # (groups, N, rows, columns)
        x = steps[2 * tap::2 * taps] * window.offset_scale + start_x
        y = steps[2 * tap + 1::2 * taps] * window.offset_scale + start_y[:, None]
        grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), -1).contiguous().flatten(0, 1)
        samples = F.grid_sample(split, grid, mode='bilinear', padding_mode='zeros', align_corners=False)
        term = samples.unflatten(0, (groups, -1)) * weights[tap::taps, :, None]
        out = term if out is None else out + term
    assert out is not None  # a kernel has at least one tap
    return out.permute(1, 3, 4, 0, 2).contiguous().flatten(3).to(maps.dtype)


def _in_chunks(maps: Tensor, offset: Tensor, mask: Tensor, window: _Window) -> Tensor:
    """Computes what :func:`sum_of_samples` does for all rows, image by image and in chunks of rows."""
    learning = torch.is_grad_enabled() and any(t.requires_grad for t in (maps, offset, mask))
    (_, rows, columns, _), groups = offset.shape, window.groups
    # a sample has as many values as a group has channels; its position has two
    values = window.taps * columns * groups * max(2, maps.shape[3] // groups)
    most = max(1, CHUNK_BYTES // (values * compute_dtype(maps.dtype).itemsize))
    outputs = []
    for image, steps, weights in zip(*(t.split(1) for t in (maps, offset, mask))):
        chunks = zip(range(0, rows, most), steps.split(most, 1), weights.split(most, 1))
        parts = [checkpoint(sum_of_samples, image, some, some_weights, first, window, use_reentrant=False,
                            preserve_rng_state=False)
                 if learning else sum_of_samples(image, some, some_weights, first, window)
                 for first, some, some_weights in chunks]
        outputs.append(torch.cat(parts, 1))
    return torch.cat(outputs)


def _check(maps: Tensor, offset: Tensor, mask: Tensor, window: _Window) -> None:
    if maps.dim() != 4 or offset.dim() != 4 or mask.dim() != 4:
        raise ValueError('dcnv3 takes a map (N, H, W, C), offsets and a mask of four dimensions, got '
                         f'{tuple(maps.shape)}, {tuple(offset.shape)} and {tuple(mask.shape)}')
    if window.groups < 1 or maps.shape[3] % window.groups:
        raise ValueError(f'{maps.shape[3]} channels do not divide into {window.groups} groups')
    size = maps.shape[0], *window.output_size(*maps.shape[1:3])
    for name, tensor, channels in (('offset', offset, 2 * window.groups * window.taps),
                                   ('mask', mask, window.groups * window.taps)):
        if tuple(tensor.shape) != (*size, channels):
            raise ValueError(f'{name} must have shape {(*size, channels)}, got {tuple(tensor.shape)}')


def dcnv3(input: Tensor, offset: Tensor, mask: Tensor, kernel_size: Size = 3, stride: Size = 1, padding: Size = 1,
          dilation: Size = 1, groups: int = 1, offset_scale: float = 1.0) -> Tensor:
    """Deformable convolution v3, the operator of InternImage.

    ``out[n, i, j, g] = sum over taps k of mask[n, i, j, g, k] * input[n, p, g]`` with the position ``p = (i, j) *
    stride - padding + center + offset_scale * (tap - center + offset[n, i, j, g, k])``, interpolated bilinearly, where
    ``tap`` is the tap's place in the dilated kernel and ``center = dilation * (kernel_size - 1) // 2``. Outside of the
    map the input is zero. The mask is used as it is: InternImage takes a softmax over the taps before.

    Positions and samples are computed in float32, or float64 for float64, also under autocast: in half precision a
    position on a large map would be wrong by pixels. At most ``CHUNK_BYTES`` (64 MiB) of samples are computed at once,
    but at least one row of one image, and the backward pass computes them again. Exported graphs (``torch.export``,
    ONNX, TorchScript) and compiled ones have the samples of one tap at once, and consist of standard operators.

    Args:
        input: Map (N, H, W, C), channels last as in the official code.
        offset: Offsets in pixels (N, H_out, W_out, groups * kh * kw * 2). For each tap the horizontal one comes first.
            The taps of a group are ordered column by column: the second is below the first.
        mask: Weights of the samples (N, H_out, W_out, groups * kh * kw), in the order of the taps of ``offset``.
        kernel_size: Number of taps, an integer or (kh, kw).
        stride: Distance of the outputs in pixels, an integer or (vertical, horizontal).
        padding: Number of pixels by which the map is extended at each side, an integer or (vertical, horizontal).
        dilation: Distance of the taps in pixels, an integer or (vertical, horizontal).
        groups: Number of groups of channels, each of which has its own offsets and weights.
        offset_scale: Factor of the offsets and of the distances of the taps from their centre.

    Returns:
        (N, H_out, W_out, C) in the dtype of ``input``, with the size of an ordinary convolution.

    Raises:
        ValueError: The shapes do not match, or a size is not valid.
    """
    window = _Window(_pair('kernel_size', kernel_size, 1), _pair('stride', stride, 1), _pair('padding', padding, 0),
                     _pair('dilation', dilation, 1), groups, offset_scale)
    whole = exporting() or torch.compiler.is_compiling()
    if not whole:
        _check(input, offset, mask, window)
    with given_dtypes(input.device):
        if whole:
            return _tap_by_tap(input, offset, mask, window)
        if not offset.numel():
            return sum_of_samples(input, offset, mask, 0, window)
        return _in_chunks(input, offset, mask, window)


def dcnv4(input: Tensor, offset_mask: Tensor, kernel_size: Size = 3, stride: Size = 1, padding: Size = 1,
          dilation: Size = 1, groups: int = 1, offset_scale: float = 1.0) -> Tensor:
    """Deformable convolution v4, the operator of FlashInternImage: :func:`dcnv3` of one tensor of offsets and weights.

    FlashInternImage takes no softmax over the weights: they have any value and any sum.

    Args:
        input: Map (N, H, W, C).
        offset_mask: Offsets and weights (N, H_out, W_out, groups * 3 * kh * kw). For each group there are the
            ``2 * kh * kw`` offsets of its samples first, as in :func:`dcnv3`, and then their ``kh * kw`` weights. The
            channels may be padded to a multiple of 8, as officially; what is over is not read.

    The other arguments, the result, its dtype and its memory are those of :func:`dcnv3`.

    Raises:
        ValueError: The shapes do not match, or a size is not valid.
    """
    kernel = _pair('kernel_size', kernel_size, 1)
    taps = kernel[0] * kernel[1]
    used, given = 3 * taps * groups, offset_mask.shape[-1]
    padded = padded_to_8(used)
    if given not in (used, padded):
        sizes = f'{used}' if used == padded else f'{used} or {padded}'
        raise ValueError(f'offset_mask must have {sizes} channels, got {tuple(offset_mask.shape)}')
    packed = offset_mask[..., :used].unflatten(-1, (groups, 3 * taps))
    offset, mask = (part.flatten(-2) for part in packed.split((2 * taps, taps), -1))
    return dcnv3(input, offset, mask, kernel, stride, padding, dilation, groups, offset_scale)


def padded_to_8(channels: int) -> int:
    """Returns the least multiple of 8 that is not less than ``channels``, for which DCNv4's CUDA kernel is written."""
    return -(-channels // 8) * 8


def multiply_adds(output: Sequence[int], taps: int) -> int:
    """Returns the multiply-adds of :func:`dcnv3` and :func:`dcnv4`.

    They are five for each sample, as ``get_flops.py`` of the official code counts: four of the interpolation and one of
    the mask.

    Args:
        output: Shape of the output.
        taps: Number of taps, kh * kw.
    """
    count = 5 * taps
    for extent in output:
        count *= extent
    return count
