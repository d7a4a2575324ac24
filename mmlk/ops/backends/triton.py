"""Direct convolution on the tensor cores of a GPU, written in Triton.

Tensor cores only multiply matrices, but do so about 16 times as fast as the units that PyTorch's own depthwise kernel
uses. A depthwise convolution is not a matrix product as it stands: each channel has one kernel and one output. Its rows
can be written as one, though. The 16 outputs y[0..15] of a strip depend on the inputs x[0..k + 14] by

    y[p] = sum over j of t[j - p] x[j]

so y = T x with a 16 x (k + 15) matrix T[p, j] = t[j - p]. T is a banded (Toeplitz) matrix: each row has the k taps t,
shifted by one from row to row, and zeros elsewhere. T is the same for all strips of a channel, so the strips become the
columns of one matrix product. About half of the numbers in T are zeros, depending on k, and are multiplied in vain; the
speed of the tensor cores more than makes up for that. The same holds for several rows of outputs at once. See Golub and
Van Loan, Matrix Computations, section 4.7, for Toeplitz matrices; Triton: Tillet, Kung and Cox, MAPL 2019.

The gradient of the weight is a product of shifted inputs and shifted gradients of the output. In float32, tensor cores
are only used if tf32 is allowed (:func:`.base.tf32_allowed`). The kernels read contiguous rows that start at multiples
of 8 elements. Maps in another format, among them channels_last, are copied once per training step.

Sums are computed in float32. Their order is fixed within a process; with deterministic algorithms
(``torch.use_deterministic_algorithms``) it is the same in all processes. A zero times infinity or NaN is NaN, so
because of the zeros in T, a value that is not finite affects up to 15 columns and 7 rows more than it should.
"""
import importlib.util
import os
from functools import partial
from types import ModuleType
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Backend, ConvProblem, Reach, tf32_allowed

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MIN_TRITON = 3, 4  # the oldest version of triton with which the kernels were tested
_MIN_PROGRAMS = 1024  # number of programs (blocks of threads) that is enough to use a whole GPU


def _up(n: int, multiple: int) -> int:
    """Returns ``n`` rounded up to a multiple."""
    return -(-n // multiple) * multiple


def _power(n: int) -> int:
    """Returns the smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


def _triton_version() -> Tuple[int, ...]:
    """Returns the major and the minor version of triton; () if it is not installed."""
    if importlib.util.find_spec('triton') is None:
        return ()
    import triton
    return tuple(int(part) for part in triton.__version__.split('.')[:2])


def _interpreting() -> bool:
    """Returns whether triton's interpreter is on, which runs kernels on a CPU."""
    return os.environ.get('TRITON_INTERPRET', '').lower() in ('1', 'true', 'on', 'yes', 'y')


def _precision(dtype: torch.dtype) -> str:
    """Returns the ``input_precision`` of ``tl.dot``: 'tf32' if that is allowed, otherwise 'ieee'."""
    return 'tf32' if dtype != torch.float32 or tf32_allowed() else 'ieee'  # for other dtypes it has no effect


class _Axes(NamedTuple):
    """Sizes of the map and of the kernel's taps that can overlap it.

    Attributes:
        height, width: Size of the map.
        taps_h, taps_w: Number of taps along the height and the width.
        above, before: Number of these taps above, and to the left of, the centre.
    """

    height: int
    width: int
    taps_h: int
    taps_w: int
    above: int
    before: int

    @classmethod
    def of(cls, problem: ConvProblem, mirrored: bool = False) -> '_Axes':
        """Returns the axes of a problem; with ``mirrored`` those for the flipped kernel."""
        rows, columns = Reach.of(problem)
        above, before = (rows.after, columns.after) if mirrored else (rows.before, columns.before)
        return cls(problem.height, problem.width, rows.before + 1 + rows.after, columns.before + 1 + columns.after,
                   above, before)

    @property
    def turned(self) -> '_Axes':
        """The axes of the transposed maps and kernel."""
        return _Axes(self.width, self.height, self.taps_w, self.taps_h, self.before, self.above)

    @property
    def tall(self) -> bool:
        """Whether transposed maps are faster: if the rows of taps are short, the banded matrix has mostly zeros."""
        return self.taps_h > 2 * self.taps_w

    @property
    def wide(self) -> bool:
        """Whether the gradient of the weight is faster with transposed maps: it reads ``x`` once per column of taps."""
        return self.taps_w > 2 * self.taps_h

    @property
    def span(self) -> Tuple[int, int]:
        """The input columns that a strip of 16 output columns reads.

        Returns the offset of the first one from the strip's first output column, a multiple of 8, and the number of
        input columns, a multiple of 16. Columns that are outside the map for every strip are left out.
        """
        columns, before = _up(self.width, 8), _up(self.before, 8)
        first = max(0, before - (_up(columns, 16) - 16))
        last = before + min(16 + self.taps_w - 1 - self.before, columns)
        return first - before, _up(last - first, 16)


def _rows(x: Tensor) -> Tensor:
    """Returns the maps ``x``, (N, C, H, W), with contiguous rows that start at multiples of 8 elements.

    That is ``x`` itself if possible, otherwise a copy whose rows are padded with zeros to a multiple of 8.
    """
    batch, channels, height, width = x.shape
    if (width % 8 == 0 and x.stride(3) == 1 and x.data_ptr() % 16 == 0
            and all(x.stride(d) % 8 == 0 for d in range(3) if x.shape[d] > 1)):
        return x
    if channels > 1 and x.stride(1) == 1:
        out = x.new_empty(batch, channels, height, _up(width, 8))
        _relay(out, x, to_last=False)
        return out
    out = x.new_zeros(batch, channels, height, _up(width, 8))
    out[..., :width] = x
    return out


def _given(y: Tensor, turned: bool, problem: ConvProblem) -> Tensor:
    """Returns maps in the problem's shape and memory format.

    Args:
        y: Contiguous maps whose rows may be longer than the map: (N, C, H, W'), or (N, C, W, H') if ``turned``.
        turned: Whether ``y`` is transposed.
        problem: The problem.
    """
    if not problem.channels_last:
        y = y[..., :problem.height].transpose(2, 3) if turned else y[..., :problem.width]
        return y.contiguous()
    out = torch.empty(problem.batch, problem.channels, problem.height, problem.width, dtype=y.dtype, device=y.device,
                      memory_format=torch.channels_last)
    _relay(y, out.transpose(2, 3) if turned else out, to_last=True)
    return out


def _relay(maps: Tensor, last: Tensor, to_last: bool) -> None:
    """Copies ``last``, whose channels are contiguous, to ``maps``, whose rows are; with ``to_last`` the other way."""
    from . import triton_kernels as kernels
    batch, channels, height, width = last.shape
    columns, block = maps.shape[3], min(64, max(16, _power(maps.shape[3])))
    with torch.cuda.device_of(maps):
        kernels.relay[(batch * height, -(-columns // block), -(-channels // 64))](
            maps, last, channels, height, width, columns // 8, *_strides8(maps), last.stride(0), last.stride(2),
            last.stride(3), TO_LAST=to_last, COLUMNS=block, CHANNELS=64, num_warps=4)


def _used(problem: ConvProblem) -> Tuple[Any, ...]:
    """Returns the index of the taps (C, taps_h, taps_w) of a weight (C, 1, kh, kw) that can overlap the map."""
    return (slice(None), 0, *(reach.taps for reach in Reach.of(problem)))


def _strides8(x: Tensor) -> Tuple[int, int, int]:
    """Returns the strides of batch, channels and rows in units of 8 elements."""
    return tuple(stride // 8 for stride in x.stride()[:3])


class _HalfTiles(NamedTuple):
    """The sizes of tiles for the kernel ``weigh_halves``, which documents them under the same names."""

    span: int
    width: int
    rows: int
    taps: int
    depth: int
    strips: int
    blocks: int
    first: int
    start: int
    step: int

    @classmethod
    def of(cls, axes: _Axes, batch: int) -> '_HalfTiles':
        columns, before = _up(axes.width, 8), _up(axes.before, 8)
        depth = min(64, max(16, _power(batch * axes.height)))
        if columns <= 64:  # one strip as wide as the map: no product is wasted
            width = max(16, _power(columns))
            span, taps, first, start, step = width, min(width, max(16, _power(axes.taps_w))), 0, 0, 0
        else:
            width = 16 if before - axes.before + axes.taps_w <= 16 else 32
            span, taps, first, start, step = 2 * width, width, axes.before - before, -before, width
        return cls(span, width, 128 // width, taps, depth, -(-columns // width), -(-(axes.taps_w - first) // taps),
                   first, start, step)


def _shares(pieces: int, blocks: Tuple[int, int, int]) -> Tuple[int, int]:
    """Divides a sum into shares that are computed by different programs, so that there are enough programs.

    Args:
        pieces: Number of parts of the sum.
        blocks: Number of programs without a division, along each axis of the grid.

    Returns:
        The number of shares, and the number of pieces in each.
    """
    splits = max(1, min(pieces // 4, _MIN_PROGRAMS // (blocks[0] * blocks[1] * blocks[2])))
    per_split = -(-pieces // splits)
    return -(-pieces // per_split), per_split


def _whole(taps: Tensor, problem: ConvProblem) -> Tensor:
    """Adds up the shares (splits, C, taps_h, taps_w) and returns the gradient of the weight, (C, 1, kh, kw)."""
    result = taps.new_zeros(problem.channels, 1, problem.kh, problem.kw, dtype=problem.dtype)
    result[_used(problem)] = taps.sum(0)
    return result


_best: Dict[Tuple[object, ...], Any] = {}  # the fastest configuration of ``correlate`` by key


def _best_config(device: torch.device, key: Tuple[object, ...], configs: Sequence[Any],
                 launch: Callable[[Any], None]) -> Any:
    """Returns the fastest configuration, which is measured once per device and key.

    Nothing is measured with deterministic algorithms, because the configuration changes the order of sums, nor while a
    CUDA graph is captured. ``triton.autotune`` is not used: it measures even if there is only one configuration, which
    makes the capture of a CUDA graph fail, and does not distinguish between GPUs.

    Args:
        device: The device.
        key: What the choice depends on.
        configs: The configurations; the first is the default.
        launch: A function that launches the kernel with a configuration.
    """
    if len(configs) == 1 or device.type != 'cuda' or torch.are_deterministic_algorithms_enabled():
        return configs[0]
    key = device, *key
    if key not in _best:
        if torch.cuda.is_current_stream_capturing():
            return configs[0]
        seconds = [_seconds(partial(launch, config)) for config in configs]
        _best[key] = configs[seconds.index(min(seconds))]
    return _best[key]


def _seconds(launch: Callable[[], None]) -> float:
    """Returns the seconds of one launch; inf if the GPU's registers or shared memory are too small, or ptxas fails."""
    from triton.runtime.errors import OutOfResources, PTXASError
    from triton.testing import do_bench
    try:
        return do_bench(launch, warmup=5, rep=20, return_mode='median') / 1e3
    except (OutOfResources, PTXASError):
        return float('inf')


class Triton(Backend):
    name = 'triton'
    joint = True
    keeps = True

    def can_run(self, problem: ConvProblem) -> Tuple[bool, str]:
        device, dtype = problem.device, problem.dtype
        if device.type != 'cuda' and not (device.type == 'cpu' and _interpreting()):
            return False, f'it runs on cuda, not {device.type}'
        version = _triton_version()
        if version < _MIN_TRITON:
            return False, (f'it needs triton {_MIN_TRITON[0]}.{_MIN_TRITON[1]}, which comes with torch 2.8; ' +
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

    def cost(self, step: str, problem: ConvProblem) -> float:
        if step == 'training':
            return self.cost('forward', problem) + self.cost('gradients', problem)
        if step == 'gradients':
            return self.cost('grad_input', problem) + self.cost('grad_weight', problem)
        if max(problem.kh, problem.kw) <= 7:
            return float('inf')  # limited by memory bandwidth, and PyTorch has special kernels for these sizes
        if problem.device.type != 'cuda':
            return problem.macs / 1e6  # the interpreter
        half, exact = problem.dtype != torch.float32, _precision(problem.dtype) == 'ieee'
        axes, maps = _Axes.of(problem), problem.batch * problem.channels
        copied = problem.channels_last or problem.width % 8 > 0
        if step != 'grad_weight':
            copied = copied or axes.tall
            axes = axes.turned if axes.tall else axes
            rows = min(axes.taps_h + 3, axes.height + axes.above)
            products = maps * _up(axes.height, 4) * _up(axes.width, 16) * rows * axes.span[1]
        elif half:
            tiles = _HalfTiles.of(axes, problem.batch)
            lines = _up(problem.batch * axes.height, tiles.depth) * tiles.strips * tiles.width
            products = problem.channels * lines * tiles.span * _up(axes.taps_h, tiles.rows) * tiles.blocks
        else:
            copied = copied or axes.wide
            axes = axes.turned if axes.wide else axes
            products = maps * axes.height * _up(axes.width, 8) * _up(axes.taps_w, 16) * _up(axes.taps_h, 16)
        # rates of an A100, at two thirds of the peak
        seconds = products / (6e12 if exact else 1e14 if half else 5e13)
        moved = maps * problem.height * problem.width * problem.dtype.itemsize * (6 if copied else 2)
        return 3e-5 + seconds + moved / 1.5e12

    def forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem,
                keep: Optional[List[Tensor]] = None) -> Tensor:
        axes = _Axes.of(problem)
        laid = _rows(x.transpose(2, 3) if axes.tall else x)
        if keep is not None and laid is not x and not axes.tall and not (problem.dtype == torch.float32 and axes.wide):
            keep.append(laid)
        return _given(self._correlate(laid, weight[_used(problem)], bias, axes), axes.tall, problem)

    def grad_input(self, grad: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
        axes = _Axes.of(problem, mirrored=True)
        return self._grad_input(_rows(grad.transpose(2, 3) if axes.tall else grad), weight, problem)

    def _grad_input(self, laid: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
        """Computes the gradient of the input from what :func:`_rows` returns for the output's gradient.

        ``laid`` is transposed if the axes are tall.
        """
        axes = _Axes.of(problem, mirrored=True)
        return _given(self._correlate(laid, weight[_used(problem)].flip(1, 2), None, axes), axes.tall, problem)

    def grad_weight(self, grad: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
        if problem.dtype != torch.float32:
            return self._weigh_halves(_rows(grad), x, problem)
        turned = _Axes.of(problem).wide
        return self._weigh(_rows(grad.transpose(2, 3) if turned else grad), x, problem)

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, problem: ConvProblem,
                  kept: Sequence[Tensor] = ()) -> Tuple[Tensor, Tensor]:
        axes = _Axes.of(problem)
        laid = _rows(grad.transpose(2, 3) if axes.tall else grad)
        grad_x = self._grad_input(laid, weight, problem)
        if axes.tall or problem.dtype == torch.float32 and axes.wide:
            return grad_x, self.grad_weight(grad, x, problem)
        if problem.dtype == torch.float32:
            return grad_x, self._weigh(laid, kept[0][..., :problem.width] if kept else x, problem)
        return grad_x, self._weigh_halves(laid, kept[0] if kept else x, problem)

    def _correlate(self, x: Tensor, taps: Tensor, bias: Optional[Tensor], axes: _Axes) -> Tensor:
        """Computes the correlation of maps with taps.

        Args:
            x: (N, C, H, W'), what :func:`_rows` returns; transposed if ``axes.tall``.
            taps: (C, taps_h, taps_w), not transposed.
            bias: (C,) or None.
            axes: The axes, not transposed.

        Returns:
            Contiguous maps of the shape of ``x``.
        """
        if axes.tall:
            axes, taps = axes.turned, taps.transpose(1, 2)
        from . import triton_kernels as kernels
        batch, channels, height, columns = x.shape
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        start, span = axes.span
        tiles = batch * -(-height // 4) * -(-columns // kernels.STRIP)
        precision = _precision(x.dtype)
        size = min(max(16, _power(tiles)), 64 if precision == 'ieee' else 128)
        while size > 32 and channels * -(-tiles // size) < _MIN_PROGRAMS // 4:
            size //= 2
        framed, bias_or_y = self._framed(taps, axes, kernels), y if bias is None else bias.contiguous()

        def launch(config: Any) -> None:
            rows, together = config.kwargs['ROWS'], size * config.kwargs['TIMES']
            grid = channels * -(-(batch * -(-height // rows) * -(-columns // kernels.STRIP)) // together),
            kernels.correlate[grid](
                x, framed, bias_or_y, y, batch, channels, height, columns // 8, axes.above, axes.taps_h, start // 8,
                *_strides8(x), SPAN=span, TILES=size, PART=kernels.DEPTH * 2 // x.dtype.itemsize,
                HAS_BIAS=bias is not None, PRECISION=precision, **config.all_kwargs())

        with torch.cuda.device_of(x):
            launch(_best_config(x.device, (span, size, precision, x.dtype), kernels.CONFIGS, launch))
        return y

    @staticmethod
    def _framed(taps: Tensor, axes: _Axes, kernels: ModuleType) -> Tensor:
        """Pads the taps (C, taps_h, taps_w) with zeros for ``correlate``; returns (C, copies, rows, length)."""
        start, span = axes.span
        copies, length = 4 // taps.dtype.itemsize, span + kernels.STRIP
        left = kernels.STRIP - 1 - start - axes.before
        framed = F.pad(taps, (left, length + copies - 1 - left - axes.taps_w, kernels.ABOVE, kernels.BELOW))
        return framed.unfold(2, length, 1).transpose(1, 2).contiguous()

    @staticmethod
    def _weigh(grad: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
        """Computes the gradient of the weight in float32.

        Args:
            grad: What :func:`_rows` returns for the gradient of the output; transposed if the axes are wide.
            x: Input, (N, C, H, W), not transposed.
            problem: The problem.

        Returns:
            (C, 1, kh, kw).
        """
        from . import triton_kernels as kernels
        axes = _Axes.of(problem)
        turned = axes.wide
        if turned:
            axes, x = axes.turned, x.transpose(2, 3)
        x = x if x.stride(3) == 1 else _rows(x)[..., :x.shape[3]]
        batch, channels, height, width = x.shape
        taps_h, taps_w = (min(64, max(16, _power(taps))) for taps in (axes.taps_h, axes.taps_w))
        depth = 64

        def area(columns: int) -> int:
            return _up(height, depth // columns) * _up(width, columns)

        columns = min((64, 32, 16, 8), key=area)
        blocks = channels, -(-axes.taps_h // taps_h), -(-axes.taps_w // taps_w)
        splits, per_split = _shares(batch * area(columns) // depth, blocks)
        out = x.new_empty(splits, channels, axes.taps_h, axes.taps_w)
        with torch.cuda.device_of(x):
            kernels.weigh[(channels * splits, *blocks[1:])](
                x, grad, out, batch, channels, height, width, axes.taps_h, axes.taps_w, axes.above, axes.before,
                per_split, splits, *x.stride()[:3], *_strides8(grad), ROWS=depth // columns, COLUMNS=columns,
                TAPS_H=taps_h, TAPS_W=taps_w, PRECISION=_precision(x.dtype),
                num_warps=2 if taps_h * taps_w < 1024 else 4, num_stages=1)
        return _whole(out.transpose(2, 3) if turned else out, problem)

    @staticmethod
    def _weigh_halves(grad: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
        """Computes the gradient of the weight in half precision.

        Args:
            grad: What :func:`_rows` returns for the gradient of the output.
            x: Input, (N, C, H, W), or what :func:`_rows` returns for it.
            problem: The problem.

        Returns:
            (C, 1, kh, kw).
        """
        from . import triton_kernels as kernels
        axes, x = _Axes.of(problem), _rows(x)
        batch, channels, height, columns = x.shape
        tiles = _HalfTiles.of(axes, batch)
        lines = batch * height
        blocks = channels, -(-axes.taps_h // tiles.rows), tiles.blocks
        splits, per_split = _shares(-(-lines // tiles.depth) * tiles.strips, blocks)
        out = x.new_empty(splits, channels, axes.taps_h, axes.taps_w, dtype=torch.float32)
        with torch.cuda.device_of(x):
            kernels.weigh_halves[(channels * splits, *blocks[1:])](
                x, grad, out, lines, height, columns // 8, channels, axes.taps_h, axes.taps_w, axes.above, axes.before,
                tiles.first, tiles.start // 8, tiles.step // 8, tiles.strips, per_split, splits, *_strides8(x),
                *_strides8(grad), SPAN=tiles.span, WIDTH=tiles.width, ROWS=tiles.rows, TAPS_W=tiles.taps,
                DEPTH=tiles.depth, PRECISION=_precision(x.dtype), num_warps=4, num_stages=1)
        return _whole(out, problem)
