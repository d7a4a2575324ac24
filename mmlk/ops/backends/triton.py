"""Direct convolution on a GPU's tensor cores, in Triton.

Rows of taps, laid out as banded matrices, turn strips of inputs into strips of outputs: matrix products with half of
their numbers in use, on units that multiply 16 times as fast as those PyTorch's own kernel runs on. The gradient of the
weight is the product of shifted inputs and shifted output gradients, with next to nothing wasted. Where tf32 is not
allowed, float32 gains from the tiling only.

Sums are in float32, in an order that is fixed within a process, and everywhere where deterministic algorithms are asked
for. The zeros of a band meet inputs too: what is not finite spreads up to 15 columns and 7 rows further than it should.
"""
import importlib.util
import os
from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Backend, Problem, Reach

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_OLDEST = 3, 4  # triton in which the kernels were proved
_PROGRAMS = 1024  # that keep any GPU busy


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()


def _triton_version() -> Tuple[int, ...]:
    """Major and minor version; nothing where triton is not installed."""
    if importlib.util.find_spec('triton') is None:
        return ()
    import triton
    return tuple(int(part) for part in triton.__version__.split('.')[:2])


def _interpreting() -> bool:
    return os.environ.get('TRITON_INTERPRET', '').lower() in ('1', 'true', 'on', 'yes', 'y')


def _precision(dtype: torch.dtype) -> str:
    """Triton's word for how float32 is multiplied: exactly, unless the person lets matrix products round it to tf32.

    The flag of matrix products, off by default, because that of convolutions is on by default and PyTorch's depthwise
    convolution is exact all the same.
    """
    if dtype != torch.float32:
        return 'tf32'  # any will do
    flags = torch.backends.cuda.matmul
    # the former from torch 2.9
    allowed = flags.fp32_precision == 'tf32' if hasattr(flags, 'fp32_precision') else flags.allow_tf32
    return 'tf32' if allowed else 'ieee'


class _Axes(NamedTuple):
    """Rows and columns of one pass: the taps that can meet the map, and how many of them precede the centre."""

    height: int
    width: int
    taps_h: int
    taps_w: int
    above: int
    before: int

    @classmethod
    def of(cls, problem: Problem, mirrored: bool = False) -> '_Axes':
        rows, columns = Reach.of(problem)
        above, before = (rows.after, columns.after) if mirrored else (rows.before, columns.before)
        return cls(problem.height, problem.width, rows.before + 1 + rows.after, columns.before + 1 + columns.after,
                   above, before)

    @property
    def turned(self) -> '_Axes':
        return _Axes(self.width, self.height, self.taps_w, self.taps_h, self.before, self.above)

    @property
    def tall(self) -> bool:
        """Whether the bands are better laid along the height: a short row of taps leaves most of its matrix empty."""
        return self.taps_h > 2 * self.taps_w

    @property
    def wide(self) -> bool:
        """Whether the weight's gradient is better taken of the turned maps: it gathers a copy of x for each column."""
        return self.taps_w > 2 * self.taps_h

    @property
    def span(self) -> Tuple[int, int]:
        """First input column less the first output column of a strip of 16, and the number of input columns.

        Columns that lie outside the map for every strip are left out. Both are multiples of 8, the latter of 16.
        """
        columns, before = _up(self.width, 8), _up(self.before, 8)
        first = max(0, before - (_up(columns, 16) - 16))
        last = before + min(16 + self.taps_w - 1 - self.before, columns)
        return first - before, _up(last - first, 16)


def _rows(x: Tensor) -> Tensor:
    """``x`` (N, C, H, W) with all rows 8-element aligned: itself, or a copy whose rows are filled up with zeros."""
    width = x.shape[3]
    if (width % 8 == 0 and x.stride(3) == 1 and x.data_ptr() % 16 == 0
            and all(x.stride(d) % 8 == 0 for d in range(3) if x.shape[d] > 1)):
        return x
    out = x.new_zeros(*x.shape[:3], _up(width, 8))
    out[..., :width] = x
    return out


def _used(problem: Problem) -> tuple:
    """The index of the taps that can meet the map, (C, taps_h, taps_w), in a weight."""
    return (slice(None), 0, *(reach.taps for reach in Reach.of(problem)))


def _strides8(x: Tensor) -> Tuple[int, int, int]:
    return tuple(stride // 8 for stride in x.stride()[:3])


class Triton(Backend):
    name = 'triton'

    def can_run(self, problem):
        device, dtype = problem.device, problem.dtype
        if device.type != 'cuda' and not (device.type == 'cpu' and _interpreting()):
            return False, f'it runs on cuda, not {device.type}'
        version = _triton_version()
        if version < _OLDEST:
            return False, (f'it needs triton {_OLDEST[0]}.{_OLDEST[1]}, which comes with torch 2.8; ' +
                           (f'this is {version[0]}.{version[1]}' if version else 'triton is not installed'))
        if dtype not in _DTYPES:
            return False, f'it runs in float16, bfloat16 and float32, not {dtype}'
        if device.type == 'cuda':
            if torch.version.cuda is None:
                return False, 'it is written for NVIDIA GPUs'
            major, minor = torch.cuda.get_device_capability(device)
            if major < 8:
                return False, f'its products need compute capability 8.0, this GPU has {major}.{minor}'
        return True, ''

    def cost(self, step, problem):
        if step == 'gradients':
            return self.cost('grad_input', problem) + self.cost('grad_weight', problem)
        if max(problem.kh, problem.kw) <= 7:
            return float('inf')  # bound by memory, and PyTorch has kernels for these
        if problem.device.type != 'cuda':
            return problem.macs / 1e6  # the interpreter
        half, exact = problem.dtype != torch.float32, _precision(problem.dtype) == 'ieee'
        axes, maps = _Axes.of(problem), problem.batch * problem.channels
        copied = problem.channels_last or problem.width % 8 > 0
        if step == 'grad_weight':
            copied = copied or axes.wide
            axes = axes.turned if axes.wide else axes
            gathered = maps * axes.height * axes.width * _up(axes.taps_w, 16) * -(-axes.taps_h // 64)
            seconds = gathered / (1e12 if half else 3e11)
        else:
            copied = copied or axes.tall
            axes = axes.turned if axes.tall else axes
            rows = min(axes.taps_h + 3, axes.height + axes.above)
            products = maps * _up(axes.height, 4) * _up(axes.width, 16) * rows * axes.span[1]
            seconds = products / (6e12 if exact else 4e13 if half else 1.5e13)
        moved = maps * problem.height * problem.width * problem.dtype.itemsize * (6 if copied else 2)
        return 5e-5 + seconds + moved / 1.5e12

    def forward(self, x, weight, bias, problem):
        out = self._correlate(x, weight[_used(problem)], bias, _Axes.of(problem))
        return out.contiguous(memory_format=problem.memory_format)

    def grad_input(self, grad, weight, problem):
        out = self._correlate(grad, weight[_used(problem)].flip(1, 2), None, _Axes.of(problem, mirrored=True))
        return out.contiguous(memory_format=problem.memory_format)

    def _correlate(self, x: Tensor, taps: Tensor, bias: Optional[Tensor], axes: _Axes) -> Tensor:
        """(N, C, H, W) in any strides, from x (N, C, H, W) and taps (C, taps_h, taps_w)."""
        if axes.tall:
            return self._correlate(x.transpose(2, 3), taps.transpose(1, 2), bias, axes.turned).transpose(2, 3)
        from . import triton_kernels as kernels
        x = _rows(x)
        batch, channels, height, columns = x.shape
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        start, span = axes.span
        tiles = batch * -(-height // 4) * -(-columns // kernels.STRIP)
        precision = _precision(x.dtype)
        size = min(max(16, _power(tiles)), 64 if precision == 'ieee' else 128 if x.dtype == torch.float32 else 256)
        while size > 32 and channels * -(-tiles // size) < _PROGRAMS // 4:
            size //= 2

        def grid(meta):
            return channels * -(-(batch * -(-height // meta['ROWS']) * -(-columns // kernels.STRIP)) // size),

        with torch.cuda.device_of(x):
            kernels.correlate[grid](
                x, self._framed(taps, axes, kernels), y if bias is None else bias, y, batch, channels, height,
                columns // 8, axes.above, axes.taps_h, start // 8, *_strides8(x), SPAN=span, TILES=size,
                PART=kernels.DEPTH * 2 // x.dtype.itemsize, HAS_BIAS=bias is not None, PRECISION=precision)
        return y[..., :axes.width]

    @staticmethod
    def _framed(taps: Tensor, axes: _Axes, kernels) -> Tensor:
        """(C, taps_h, taps_w) to the zero-framed (C, copies, rows, length) that the kernel reads."""
        start, span = axes.span
        copies, length = 4 // taps.dtype.itemsize, span + kernels.STRIP
        left = kernels.STRIP - 1 - start - axes.before
        framed = F.pad(taps, (left, length + copies - 1 - left - axes.taps_w, kernels.ABOVE, kernels.BELOW))
        return framed.unfold(2, length, 1).transpose(1, 2).contiguous()

    def grad_weight(self, grad, x, problem):
        from . import triton_kernels as kernels
        axes = _Axes.of(problem)
        turned = axes.wide
        if turned:
            axes, grad, x = axes.turned, grad.transpose(2, 3), x.transpose(2, 3)
        grad, x = _rows(grad), x if x.stride(3) == 1 else x.contiguous()
        batch, channels, height, width = x.shape
        taps_h, taps_w = (min(64, max(16, _power(taps))) for taps in (axes.taps_h, axes.taps_w))
        depth = 128 if x.dtype.itemsize == 2 else 64

        def area(columns):
            return _up(height, depth // columns) * _up(width, columns)

        columns = min((64, 32, 16, 8), key=area)
        pieces = batch * area(columns) // depth
        blocks = channels, -(-axes.taps_h // taps_h), -(-axes.taps_w // taps_w)
        splits = max(1, min(pieces // 4, _PROGRAMS // (blocks[0] * blocks[1] * blocks[2])))
        per_split = -(-pieces // splits)
        out = x.new_empty(-(-pieces // per_split), channels, axes.taps_h, axes.taps_w, dtype=torch.float32)
        with torch.cuda.device_of(x):
            kernels.weigh[(channels * len(out), *blocks[1:])](
                x, grad, out, batch, channels, height, width, axes.taps_h, axes.taps_w, axes.above, axes.before,
                per_split, len(out), *x.stride()[:3], *_strides8(grad), ROWS=depth // columns, COLUMNS=columns,
                TAPS_H=taps_h, TAPS_W=taps_w, PRECISION=_precision(x.dtype),
                num_warps=2 if taps_h * taps_w <= 1024 else 4, num_stages=1)
        result = x.new_zeros(channels, 1, problem.kh, problem.kw)
        taps = out.sum(0)
        result[_used(problem)] = taps.transpose(1, 2) if turned else taps
        return result
