"""Convolution as a product of spectra whose transforms are matrix products: best where the map is too small for an FFT.

A matrix product runs near the machine's peak and an FFT far below it, so up to lengths of about 64 the cubic method
wins. Channels stand last throughout, so that products are large and nothing is transposed between them. Along the
height a real map becomes cosine and sine sums A, B, for A - iB at a frequency v; along the width these become
Z+ = F(A - iB) and Z- = F(A + iB), the spectrum at (v, u) and at (-v, u). Any length will do, and where a row or a tap
stands is a matter of phase, so nothing is padded, rolled or cropped.
"""
from functools import lru_cache
from typing import NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .base import ConvProblem, Reach, half_precision_and_up
from .spectral import SpectralPlan, Spectral, pixels_to_planes

_CHUNK_ELEMENTS = 1 << 21  # elements of one chunk's circles, for the caches
_MAX_MATRICES = 48  # pairs that are kept of each kind, of at most 0.5 MiB in float32
_MAX_LENGTH = 160  # of a transform; past that its time and its memory have lost to the FFT for good


def full_speed_length(length: int) -> int:
    """The smallest length >= ``length`` with a multiple of 4 frequencies: along the width they are the columns of the
    products, which run at full speed then."""
    frequencies = -(-(length // 2 + 1) // 4) * 4
    return max(length, 2 * (frequencies - 1))


class _Samples(NamedTuple):
    """``count`` samples of one axis at positions ``start``, ``start + step``, ... of a circle of ``length``."""

    length: int
    start: int
    step: int
    count: int  # type: ignore[assignment]  # the name of a method of tuples


@lru_cache(maxsize=64)
def _waves(samples: _Samples) -> Tuple[Tensor, Tensor]:
    """Cosines and sines, (frequencies, count) each, in float64."""
    frequencies = torch.arange(samples.length // 2 + 1, device='cpu')
    positions = samples.start + samples.step * torch.arange(samples.count, device='cpu')
    angles = (frequencies[:, None] * positions % samples.length).double() * (2 * torch.pi / samples.length)
    return angles.cos(), angles.sin()


def _to_both(cos: Tensor, sin: Tensor) -> Tensor:
    """(2 count, 4 frequencies): ``(A beside B) @`` this is Z+ beside Z-, real and imaginary parts interleaved."""
    wave = torch.complex(cos, -sin).t()
    both = torch.cat([torch.cat([wave, wave], 1), torch.cat([-1j * wave, 1j * wave], 1)])
    return torch.view_as_real(both).flatten(1)


@lru_cache(maxsize=_MAX_MATRICES)
def _analysis(rows: _Samples, columns: _Samples, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
    """(left, right): ``left @ map`` is A and B in turn for each frequency, ``(A beside B) @ right`` is Z+ beside Z-."""
    return torch.stack(_waves(rows), 1).flatten(0, 1).to(dtype), _to_both(*_waves(columns)).to(dtype)


@lru_cache(maxsize=_MAX_MATRICES)
def _synthesis(rows: _Samples, columns: _Samples, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
    """(left, right): ``right @ (Z+ above Z-)`` is A above B, ``left @ (A, B in turn)`` is the map at those samples."""
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
    """The samples of one problem: pixels where they stand, taps mirrored, each as a phase. A spectrum is (..., Fh, C,
    2 Fw): at each frequency along the height Z+ and Z-."""

    channels_last = True

    def __init__(self, problem: ConvProblem) -> None:
        super().__init__(problem, (int, full_speed_length), _CHUNK_ELEMENTS)
        self.map = [_Samples(length, 0, 1, reach.extent) for length, reach in zip(self.lengths, self.reaches)]
        self.taps = [_Samples(length, reach.before, -1, reach.before + 1 + reach.after)
                     for length, reach in zip(self.lengths, self.reaches)]

    def _spectrum(self, x: Tensor, samples: Sequence[_Samples]) -> Tensor:
        """(..., h, w, C) to its spectrum."""
        left, right = _analysis(*samples, self.dtype)
        *outer, height, width, channels = x.shape
        half = torch.matmul(left, x.reshape(-1, height, width * channels).to(self.dtype))
        whole = torch.matmul(half.view(-1, 2 * width, channels).mT, right)
        return torch.view_as_complex(whole.view(*outer, len(left) // 2, channels, -1, 2))

    def _inverse(self, spectrum: Tensor, samples: Sequence[_Samples], out: Tensor,
                 bias: Optional[Tensor] = None) -> None:
        """A spectrum to the map, into ``out`` (..., h, w, C)."""
        left, right = _synthesis(*samples, self.dtype)
        *_, frequencies, channels, _ = spectrum.shape
        half = torch.matmul(right, torch.view_as_real(spectrum).view(-1, channels, right.shape[1]).mT)
        if bias is not None:  # along the height a constant is A at frequency 0
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


_plan = lru_cache(maxsize=1024)(DftPlan)  # it holds a few numbers


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
