"""The backends of :func:`mmlk.ops.neighborhood_av`: by banded matrices, by copies of windows, and by Triton kernels.

In all of them, ``attn`` is (B, g, H, W, k * k), ``value`` and ``grad`` are (B, g, H, W, C), of one dtype and device and
with any strides, and no tensor is empty. Results are contiguous.

**Banded matrices.** Consider the outputs of one row i of the map and one head: W x C numbers, each a sum over the k
rows of the window and its k columns. The k rows of values that they read are the same for all of them. Only the columns
differ, by one from output to output. So if the weights of output j are written into row j of a matrix A, from the
column on where its window starts, with zeros elsewhere, then the outputs are A V, an ordinary matrix product. A has a
band of k entries for each row of the window. Most of A are zeros if the map is wide, so the map is cut into strips of
columns: for strips of T outputs, A has k + T - 1 columns. The weights are copied into their places by a strided view
whose rows start one element later each. The zeros between stay from one chunk of rows to the next. The gradients are
A^T times the gradient for ``value``, and the band of the product of gradient and values for ``attn``.
"""
from typing import Iterator, List, NamedTuple, Tuple

import torch
from torch import Tensor

from .base import compute_dtype, half_precision_and_up
from .triton import _interpreting, _triton_version

_STRIP = 32  # number of output columns in a strip
_CHUNK = 2**18  # maximum number of elements of a banded matrix, unless one row of the map needs more
_MIN_TRITON = 3, 4


def window_starts(length: int, kernel_size: int, device: torch.device) -> Tensor:
    """Returns the first index of each window along an axis, (length, ), int64. ``length`` may be symbolic."""
    last = length - kernel_size
    first = (torch.arange(length, device=device) - kernel_size // 2).clamp(min=0)
    return last - (last - first).clamp(min=0)  # min(first, last), also where ``last`` is a number of a traced graph


class NeighborhoodBackend:
    """One implementation of the operator and of its two gradients."""

    name: str  #: name by which a user selects the backend

    def can_run(self, value: Tensor) -> Tuple[bool, str]:
        """Returns (True, ''), or (False, reason) if the backend cannot run this device or dtype."""
        raise NotImplementedError

    def forward(self, attn: Tensor, value: Tensor, kernel_size: int) -> Tensor:
        """Returns the output, (B, g, H, W, C)."""
        raise NotImplementedError

    def grad_attn(self, grad: Tensor, value: Tensor, kernel_size: int) -> Tensor:
        """Returns the gradient of ``attn``, (B, g, H, W, k * k)."""
        raise NotImplementedError

    def grad_value(self, grad: Tensor, attn: Tensor, kernel_size: int) -> Tensor:
        """Returns the gradient of ``value``, (B, g, H, W, C)."""
        raise NotImplementedError


class Gather(NeighborhoodBackend):
    """Copies, for one row of the window after the other, the values that each output reads, and multiplies them.

    It needs ``k`` times the memory of ``value``.
    """

    name = 'gather'

    def can_run(self, value: Tensor) -> Tuple[bool, str]:
        return half_precision_and_up(value.dtype)

    def forward(self, attn: Tensor, value: Tensor, kernel_size: int) -> Tensor:
        return gather(attn.to(compute_dtype(attn.dtype)), value.to(compute_dtype(value.dtype)),
                      kernel_size).to(value.dtype)

    def grad_attn(self, grad: Tensor, value: Tensor, kernel_size: int) -> Tensor:
        g = grad.to(compute_dtype(grad.dtype))[..., None]
        rows = [(window @ g).squeeze(-1) for window in _windows(value.to(g.dtype), kernel_size)]
        return torch.cat(rows, -1).to(grad.dtype)

    def grad_value(self, grad: Tensor, attn: Tensor, kernel_size: int) -> Tensor:
        dtype = compute_dtype(grad.dtype)
        batch, heads, height, width, channels = grad.shape
        rows, columns = _indices(height, width, kernel_size, grad.device)
        result = torch.zeros(grad.shape, dtype=dtype, device=grad.device)
        for p in range(kernel_size):
            weights = attn[..., p * kernel_size:(p + 1) * kernel_size, None].to(dtype)
            products = (weights * grad[..., None, :]).reshape(batch, heads, height, width * kernel_size, channels)
            line = torch.zeros_like(result).index_add_(3, columns, products)
            result.index_add_(2, rows + p, line)
        return result.to(grad.dtype)


def _indices(height: int, width: int, kernel_size: int, device: torch.device) -> Tuple[Tensor, Tensor]:
    """Returns the first row of each row's windows, (H, ), and all columns of each column's windows, (W * k, )."""
    columns = window_starts(width, kernel_size, device)[:, None] + torch.arange(kernel_size, device=device)
    return window_starts(height, kernel_size, device), columns.flatten()


def _windows(value: Tensor, kernel_size: int) -> Iterator[Tensor]:
    """Yields the values in each row of each window, (B, g, H, W, k, C)."""
    batch, heads, height, width, channels = value.shape
    rows, columns = _indices(height, width, kernel_size, value.device)
    for p in range(kernel_size):
        lines = value.index_select(2, rows + p).index_select(3, columns)
        yield lines.reshape(batch, heads, height, width, kernel_size, channels)


def gather(attn: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    """Computes the operator by PyTorch's own operators, which can be exported, transformed and differentiated.

    Sizes may be symbolic.
    """
    products = [attn[..., None, p * kernel_size:(p + 1) * kernel_size] @ window
                for p, window in enumerate(_windows(value, kernel_size))]
    return sum(products[1:], products[0]).squeeze(-2)


class _Strip(NamedTuple):
    """A strip of output columns, and the columns that their windows cover.

    Attributes:
        first, last: The output columns, without ``last``.
        low, high: The columns that they read, without ``high``.
        parts: The output columns in up to three parts: those at the left border and those at the right border share
            a window; between them, each window is one column to the right of the one before.
    """

    first: int
    last: int
    low: int
    high: int
    parts: Tuple['_Part', ...]

    @property
    def span(self) -> int:
        return self.high - self.low


class _Part(NamedTuple):
    """Rows or columns from ``first`` to ``last`` - 1, whose windows start at ``start`` + ``step`` * (index - first)."""

    first: int
    last: int
    start: int
    step: int


def _parts(length: int, kernel_size: int, first: int, last: int) -> Tuple[_Part, ...]:
    """Divides the indices from ``first`` to ``last`` - 1 of an axis into parts; see :class:`_Strip`."""
    half = kernel_size // 2
    borders = (0, half, length - kernel_size + half + 1, length)
    parts = []
    for number, (start, end) in enumerate(zip(borders, borders[1:])):
        start, end = max(start, first), min(end, last)
        if start < end:
            parts.append(_Part(start, end, (0, start - half, length - kernel_size)[number], int(number == 1)))
    return tuple(parts)


def _strips(width: int, kernel_size: int) -> List[_Strip]:
    """Divides the columns of a map into strips of nearly equal width."""
    count = -(-width // _STRIP) if width > _STRIP * 3 // 2 else 1
    edges = [width * number // count for number in range(count + 1)]
    strips = []
    for first, last in zip(edges, edges[1:]):
        parts = _parts(width, kernel_size, first, last)
        high = parts[-1].start + parts[-1].step * (last - 1 - parts[-1].first) + kernel_size
        strips.append(_Strip(first, last, parts[0].start, high, parts))
    return strips


def _row_chunks(height: int, kernel_size: int, rows: int) -> Iterator[_Part]:
    """Divides the rows of a map into chunks of at most ``rows`` rows, each of one part; see :class:`_Strip`."""
    for part in _parts(height, kernel_size, 0, height):
        for first in range(part.first, part.last, rows):
            yield _Part(first, min(first + rows, part.last), part.start + part.step * (first - part.first), part.step)


class _Bands:
    """The banded matrices of one strip, for chunks of rows: a buffer (rows, T, k, span)."""

    def __init__(self, strip: _Strip, kernel_size: int, value: Tensor):
        self.strip, self.kernel_size = strip, kernel_size
        height, columns = value.shape[2], strip.last - strip.first
        self.rows = max(1, min(height, _CHUNK // (columns * max(kernel_size * strip.span, value.shape[4]))))
        self.buffer = torch.zeros(self.rows, columns, kernel_size, strip.span, dtype=compute_dtype(value.dtype),
                                  device=value.device)

    def _views(self, rows: int) -> Iterator[Tuple[slice, Tensor]]:
        """Yields columns of the map, and the view (rows, columns, k, k) of their weights' places in the buffer."""
        row, column, tap_row, _ = self.buffer.stride()
        for part in self.strip.parts:
            yield slice(part.first, part.last), self.buffer.as_strided(
                (rows, part.last - part.first, self.kernel_size, self.kernel_size),
                (row, column + part.step, tap_row, 1),
                (part.first - self.strip.first) * column + part.start - self.strip.low)

    def fill(self, weights: Tensor, chunk: _Part) -> Tensor:
        """Copies the weights of one head, (H, W, k * k), into the buffer; returns the matrices, (rows, T, k * span)."""
        rows = chunk.last - chunk.first
        for columns, view in self._views(rows):
            view.copy_(weights[chunk.first:chunk.last, columns].unflatten(-1, (self.kernel_size, self.kernel_size)))
        return self.buffer[:rows].flatten(2)

    def read(self, result: Tensor, chunk: _Part) -> None:
        """Copies the bands in the buffer to ``result``, (H, W, k * k)."""
        for columns, view in self._views(chunk.last - chunk.first):
            result[chunk.first:chunk.last, columns].unflatten(-1, (self.kernel_size, self.kernel_size)).copy_(view)

    def cut(self, maps: Tensor) -> Tensor:
        """Returns the columns that the strip reads of one head, (H, W, C), contiguous: (H, span, C)."""
        return maps[:, self.strip.low:self.strip.high].to(self.buffer.dtype).contiguous()

    def windows(self, cut: Tensor, chunk: _Part) -> Tensor:
        """Returns the values in the windows of the chunk's rows, (rows, k * span, C), as a view of what :meth:`cut`
        returns. The windows of neighbouring rows overlap in memory."""
        _, span, channels = cut.shape
        return cut.as_strided((chunk.last - chunk.first, self.kernel_size * span, channels),
                              (chunk.step * span * channels, channels, 1),
                              cut.storage_offset() + chunk.start * span * channels)


class Banded(NeighborhoodBackend):
    """Products of banded matrices; see the top of this file.

    Besides the result it needs the banded matrices of a few rows and their products, each at most ``_CHUNK`` elements
    or those of one row, and two copies of the values of one head.
    """

    name = 'banded'

    def can_run(self, value: Tensor) -> Tuple[bool, str]:
        return half_precision_and_up(value.dtype)

    @staticmethod
    def _bands(value: Tensor, kernel_size: int) -> Iterator[Tuple[_Bands, List[_Part]]]:
        """Yields the buffer of each strip, and the chunks of rows that it is used for."""
        for strip in _strips(value.shape[3], kernel_size):
            bands = _Bands(strip, kernel_size, value)
            yield bands, list(_row_chunks(value.shape[2], kernel_size, bands.rows))

    def forward(self, attn: Tensor, value: Tensor, kernel_size: int) -> Tensor:
        out = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        for bands, chunks in self._bands(value, kernel_size):
            columns = slice(bands.strip.first, bands.strip.last)
            for b, g in _heads(value):
                cut = bands.cut(value[b, g])
                for chunk in chunks:
                    matrices = bands.fill(attn[b, g], chunk)
                    out[b, g, chunk.first:chunk.last, columns] = _product(matrices, bands.windows(cut, chunk), chunk)
        return out

    def grad_attn(self, grad: Tensor, value: Tensor, kernel_size: int) -> Tensor:
        result = torch.empty(*value.shape[:4], kernel_size**2, dtype=value.dtype, device=value.device)
        for bands, chunks in self._bands(value, kernel_size):
            columns = slice(bands.strip.first, bands.strip.last)
            for b, g in _heads(value):
                cut = bands.cut(value[b, g])
                for chunk in chunks:
                    part = grad[b, g, chunk.first:chunk.last, columns].to(cut.dtype)
                    rows = bands.buffer[:chunk.last - chunk.first].flatten(2)
                    torch.bmm(part, bands.windows(cut, chunk).mT, out=rows)
                    bands.read(result[b, g], chunk)
        return result

    def grad_value(self, grad: Tensor, attn: Tensor, kernel_size: int) -> Tensor:
        channels = grad.shape[4]
        result = torch.zeros(grad.shape, dtype=compute_dtype(grad.dtype), device=grad.device)
        for bands, chunks in self._bands(grad, kernel_size):
            strip = bands.strip
            for b, g in _heads(grad):
                total = result.new_zeros(grad.shape[2], strip.span, channels)
                for chunk in chunks:
                    matrices = bands.fill(attn[b, g], chunk)
                    part = grad[b, g, chunk.first:chunk.last, strip.first:strip.last].to(total.dtype)
                    if not chunk.step:  # all rows read the same values
                        matrices, part = matrices.flatten(0, 1)[None], part.flatten(0, 1)[None]
                    for i, (matrix, outputs) in enumerate(zip(matrices, part)):
                        start = chunk.start + i
                        total[start:start + kernel_size].flatten(0, 1).addmm_(matrix.mT, outputs)
                result[b, g, :, strip.low:strip.high] += total
        return result.to(grad.dtype)


def _heads(value: Tensor) -> Iterator[Tuple[int, int]]:
    """Yields the indices of all heads of all images."""
    return ((b, g) for b in range(value.shape[0]) for g in range(value.shape[1]))


def _product(matrices: Tensor, windows: Tensor, chunk: _Part) -> Tensor:
    """Returns the products of banded matrices and the values in windows, (rows, T, C)."""
    if chunk.step:
        return torch.bmm(matrices, windows)
    return (matrices.flatten(0, 1) @ windows[0]).unflatten(0, matrices.shape[:2])  # all rows read the same values


class TritonNeighborhood(NeighborhoodBackend):
    """A Triton kernel for each of output and gradients, without tensor cores. It needs no memory but the result.

    Sums are computed in float32, or float64 for float64, in a fixed order.
    """

    name = 'triton'

    def can_run(self, value: Tensor) -> Tuple[bool, str]:
        kind = value.device.type
        if kind != 'cuda' and not (kind == 'cpu' and _interpreting()):
            return False, f'it runs on cuda, not {kind}'
        version = _triton_version()
        if version < _MIN_TRITON:
            return False, ('it needs triton 3.4, which comes with torch 2.8; ' +
                           (f'this is {version[0]}.{version[1]}' if version else 'triton is not installed'))
        return half_precision_and_up(value.dtype)

    def forward(self, attn: Tensor, value: Tensor, kernel_size: int) -> Tensor:
        out = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        self._launch('weighted_sum', attn.contiguous(), value.contiguous(), out, kernel_size)
        return out

    def grad_attn(self, grad: Tensor, value: Tensor, kernel_size: int) -> Tensor:
        result = torch.empty(*value.shape[:4], kernel_size**2, dtype=value.dtype, device=value.device)
        self._launch('weights_gradient', result, value.contiguous(), grad.contiguous(), kernel_size)
        return result

    def grad_value(self, grad: Tensor, attn: Tensor, kernel_size: int) -> Tensor:
        result = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
        self._launch('values_gradient', attn.contiguous(), result, grad.contiguous(), kernel_size)
        return result

    @staticmethod
    def _launch(kernel: str, attn: Tensor, value: Tensor, output: Tensor, kernel_size: int) -> None:
        from . import neighborhood_kernels as kernels
        batch, heads, height, width, channels = value.shape
        pixels = 32 if channels > 16 else 64
        block = min(64, max(16, 1 << (channels - 1).bit_length()))
        tiles = -(-height * width // pixels)
        # all channels are one sum for the gradient of attn, and different programs for the others
        grid = (batch * heads * tiles, 1 if kernel == 'weights_gradient' else -(-channels // block))
        with torch.cuda.device_of(value):
            getattr(kernels, kernel)[grid](attn, value, output, height, width, channels, kernel_size, tiles,
                                           PIXELS=pixels, CHANNELS=block, DOUBLE=value.dtype == torch.float64,
                                           num_warps=4)


TABLE = (Banded(), Gather(), TritonNeighborhood())
