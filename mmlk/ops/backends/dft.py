"""Convolution in the frequency domain by matrix products; usually the fastest method for small maps.

The discrete Fourier transform (DFT) of n samples is the product with the n x n matrix exp(-2 pi i u t / n). An FFT
needs fewer operations, but a matrix product runs near the peak speed of a CPU and an FFT far below it. For lengths up
to about 64 the matrix product is therefore faster. See Van Loan, Computational Frameworks for the Fast Fourier
Transform, 1992, chapter 1, for the DFT as a matrix; :mod:`.spectral` explains convolution by spectra.

A transform of real maps takes two products. The first, along the height, gives for each frequency v the sums with
cosines, A, and with sines, B; the transform along the height is A - iB at frequency v, and A + iB at frequency -v. The
second, along the width, gives Z+, the transform of A - iB, and Z-, the transform of A + iB: the two-dimensional
spectrum at (v, u) and at (-v, u). Real maps have a symmetric spectrum, so frequencies from 0 to half the length are
enough.

The matrices need not be square. Their columns are the positions at which there are samples, so the zeros of a padding
are never multiplied, and a shifted position is a factor of the matrix. Nothing is padded, shifted or cropped. Maps are
in channels_last, which makes the products large, and no transposition is needed between the two.
"""
from functools import lru_cache
from typing import NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .base import ConvProblem, Reach, half_precision_and_up
from .spectral import SpectralPlan, Spectral, pixels_to_planes

_CHUNK_ELEMENTS = 1 << 21  # maximum elements of one chunk of channels, so that it fits into the CPU caches
_MAX_MATRICES = 48  # maximum number of cached pairs of matrices of each kind; a pair has at most 0.5 MiB in float32
_MAX_LENGTH = 160  # of a transform; for larger ones the FFT always takes less time and less memory


def full_speed_length(length: int) -> int:
    """Returns the smallest length of at least ``length`` whose half spectrum has a multiple of 4 frequencies.

    Along the width, the frequencies are the columns of the matrix products, which are fastest then.
    """
    frequencies = -(-(length // 2 + 1) // 4) * 4
    return max(length, 2 * (frequencies - 1))


class _Samples(NamedTuple):
    """``count`` samples on one axis, at the positions ``start``, ``start + step``, ..., for a DFT of ``length``."""

    length: int
    start: int
    step: int
    count: int  # type: ignore[assignment]  # the name of a method of tuples


@lru_cache(maxsize=64)
def _waves(samples: _Samples) -> Tuple[Tensor, Tensor]:
    """Returns the cosines and the sines of the DFT matrix, (frequencies, count) each, float64."""
    frequencies = torch.arange(samples.length // 2 + 1, device='cpu')
    positions = samples.start + samples.step * torch.arange(samples.count, device='cpu')
    angles = (frequencies[:, None] * positions % samples.length).double() * (2 * torch.pi / samples.length)
    return angles.cos(), angles.sin()


def _to_both(cos: Tensor, sin: Tensor) -> Tensor:
    """Returns the matrix M for which ``[A, B] @ M`` is ``[Z+, Z-]``, with real and imaginary parts interleaved.

    Args:
        cos, sin: What :func:`_waves` returns, (frequencies, count) each.

    Returns:
        (2 * count, 4 * frequencies), float64.
    """
    wave = torch.complex(cos, -sin).t()
    both = torch.cat([torch.cat([wave, wave], 1), torch.cat([-1j * wave, 1j * wave], 1)])
    return torch.view_as_real(both).flatten(1)


@lru_cache(maxsize=_MAX_MATRICES)
def _analysis(rows: _Samples, columns: _Samples, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
    """Returns the two matrices of the transform.

    ``left @ map`` gives A and B, interleaved by frequency; ``[A, B] @ right`` gives ``[Z+, Z-]``.

    Returns:
        left, (2 * row frequencies, rows), and right, (2 * columns, 4 * column frequencies).
    """
    return torch.stack(_waves(rows), 1).flatten(0, 1).to(dtype), _to_both(*_waves(columns)).to(dtype)


@lru_cache(maxsize=_MAX_MATRICES)
def _synthesis(rows: _Samples, columns: _Samples, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
    """Returns the two matrices of the inverse transform.

    ``right @ [Z+, Z-].T`` gives ``[A, B].T``, and ``left @`` A and B, interleaved by frequency, gives the map at the
    given samples.

    Returns:
        left, (rows, 2 * row frequencies), and right, (2 * columns, 4 * column frequencies).
    """
    halves = []
    for samples in (rows, columns):
        share = torch.full((samples.length // 2 + 1, 1), 2 / samples.length, dtype=torch.float64, device='cpu')
        share[0] /= 2
        if samples.length % 2 == 0:
            share[-1] /= 2
        halves.append([share * wave for wave in _waves(samples)])
    left = torch.stack(halves[0], 1).flatten(0, 1).t()
    return left.to(dtype).contiguous(), (_to_both(*halves[1]) / 2).to(dtype)  # A is half the sum of Z+ and Z-


class DftPlan(SpectralPlan):
    """The positions of the samples of one problem: pixels at their place, taps mirrored around the centre.

    A spectrum is complex, (..., Fh, C, 2 * Fw), with Fh and Fw frequencies along the height and the width: for each
    frequency along the height Z+ and Z-.
    """

    channels_last = True

    def __init__(self, problem: ConvProblem) -> None:
        super().__init__(problem, (int, full_speed_length), _CHUNK_ELEMENTS)
        self.map = [_Samples(length, 0, 1, reach.extent) for length, reach in zip(self.lengths, self.reaches)]
        self.taps = [_Samples(length, reach.before, -1, reach.before + 1 + reach.after)
                     for length, reach in zip(self.lengths, self.reaches)]

    def _spectrum(self, x: Tensor, samples: Sequence[_Samples]) -> Tensor:
        """Returns the spectrum of ``x``, (..., h, w, C), whose pixels are at the given samples (rows, columns)."""
        left, right = _analysis(*samples, self.dtype)
        *outer, height, width, channels = x.shape
        half = torch.matmul(left, x.reshape(-1, height, width * channels).to(self.dtype))
        whole = torch.matmul(half.view(-1, 2 * width, channels).mT, right)
        return torch.view_as_complex(whole.view(*outer, len(left) // 2, channels, -1, 2))

    def _inverse(self, spectrum: Tensor, samples: Sequence[_Samples], out: Tensor,
                 bias: Optional[Tensor] = None) -> None:
        """Writes the inverse transform at the given samples to ``out``, (..., h, w, C), plus ``bias`` (C,)."""
        left, right = _synthesis(*samples, self.dtype)
        *_, frequencies, channels, _ = spectrum.shape
        half = torch.matmul(right, torch.view_as_real(spectrum).view(-1, channels, right.shape[1]).mT)
        if bias is not None:  # a constant map only has A at frequency 0
            half.view(-1, frequencies, 2, out.shape[-2], channels)[:, 0, 0].add_(bias, alpha=self.lengths[0])
        half = half.view(-1, 2 * frequencies, out.shape[-2] * channels)
        if out.is_contiguous() and out.dtype == self.dtype:
            torch.bmm(left.expand(len(half), -1, -1), half, out=out.view(len(half), len(left), -1))
        else:
            out.copy_(torch.matmul(left, half).view(out.shape))

    def of_map(self, x: Tensor) -> Tensor:
        return self._spectrum(x.permute(0, 2, 3, 1), self.map)

    def of_gradient(self, grad: Tensor) -> Tensor:
        return self.of_map(grad)

    def of_kernel(self, weight: Tensor) -> Tensor:
        taps = self.in_use(weight)
        return self._spectrum(taps.flatten(1).t().reshape(*taps.shape[1:], -1), self.taps)

    def output(self, spectrum: Tensor, out: Tensor, bias: Optional[Tensor] = None) -> None:
        last = torch.empty_like(out, memory_format=torch.channels_last) if out.stride(1) != 1 else out
        self._inverse(spectrum, self.map, last.permute(0, 2, 3, 1), bias)
        if last is not out:
            pixels_to_planes(last, out)

    grad_input = output

    def grad_taps(self, spectrum: Tensor, out: Tensor) -> None:
        self._inverse(spectrum, self.taps, out.permute(1, 2, 0))


_plan = lru_cache(maxsize=1024)(DftPlan)  # a plan has a few numbers, but no tensors


class DFT(Spectral):
    name = 'dft'

    def plan(self, problem: ConvProblem) -> SpectralPlan:
        return _plan(problem)

    def can_run(self, problem: ConvProblem) -> Tuple[bool, str]:
        if problem.device.type != 'cpu':
            return False, f'it runs on cpu, not {problem.device.type}'
        longest = max(reach.circle for reach in Reach.of(problem))
        if longest > _MAX_LENGTH:
            return False, f'map plus half the kernel is {longest} long, it runs up to {_MAX_LENGTH}'
        return half_precision_and_up(problem.dtype)

    def cost(self, step: str, problem: ConvProblem) -> float:
        plan = _plan(problem)
        maps, kernels = self.transforms[step]
        height, width = plan.lengths

        def seconds(rows: int, columns: int) -> float:
            return 2 * height * columns * (rows + 2 * width) / 200e9 + plan.area * 3e-10

        return 1e-4 * len(plan.chunks) + plan.laying_out(problem, maps) + problem.channels * (
            maps * problem.batch * seconds(problem.height, problem.width) + kernels * seconds(problem.kh, problem.kw))
