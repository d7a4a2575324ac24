"""Convolution as a product of spectra whose transforms are matrix products: best where the map is too small for an FFT.

A matrix product runs near the machine's peak and an FFT far below it, so up to lengths of about 64 the cubic method
wins. Along the width a transform is complex, its real and imaginary parts interleaved. Along the height it is kept as
cosine and sine sums P, Q of those complex numbers, Z = P - iQ, which halves the products: (P, Q) times (P', Q') is
(PP' - QQ', PQ' + QP'). Any length will do, and where a row or a tap stands is a matter of phase, so nothing is padded,
rolled or cropped.
"""
from functools import lru_cache
from typing import NamedTuple

import torch

from .base import Reach, half_precision_and_up
from .spectral import Plan, Spectral

_CHUNK = 1 << 18  # elements of one chunk's spectra, for the caches
_MATRICES = 128  # pairs that are kept of each kind, of at most 0.2 MiB in float32
_LONGEST = 160  # of a transform; past that its time and its memory have lost to the FFT for good


def transform_length(length: int) -> int:
    """The smallest length >= ``length`` with a multiple of 4 frequencies, so that matrix products run at full speed."""
    frequencies = -(-(length // 2 + 1) // 4) * 4
    return max(length, 2 * (frequencies - 1))


class _Samples(NamedTuple):
    """``count`` samples of one axis at positions ``start``, ``start + step``, ... of a circle of ``length``."""

    length: int
    start: int
    step: int
    count: int


@lru_cache(maxsize=64)
def _waves(samples: _Samples):
    """Cosines and sines, (frequencies, count) each, in float64."""
    frequencies = torch.arange(samples.length // 2 + 1)
    positions = samples.start + samples.step * torch.arange(samples.count)
    angles = (frequencies[:, None] * positions % samples.length).double() * (2 * torch.pi / samples.length)
    return angles.cos(), angles.sin()


@lru_cache(maxsize=_MATRICES)
def _analysis(rows: _Samples, columns: _Samples, dtype: torch.dtype):
    """(left, right): ``left @ map @ right`` is the spectrum, P above Q, real and imaginary parts interleaved."""
    left = torch.cat(_waves(rows))
    cos, sin = _waves(columns)
    return left.to(dtype), torch.stack([cos, -sin], 1).flatten(0, 1).t().to(dtype).contiguous()


@lru_cache(maxsize=_MATRICES)
def _synthesis(rows: _Samples, columns: _Samples, dtype: torch.dtype):
    """(left, right): ``left @ spectrum @ right`` is the map at those samples."""
    halves = []
    for samples in (rows, columns):
        share = torch.full((samples.length // 2 + 1, 1), 2 / samples.length, dtype=torch.float64)
        share[0] /= 2
        if samples.length % 2 == 0:
            share[-1] /= 2
        halves.append([share * wave for wave in _waves(samples)])
    cos, sin = halves[1]
    return torch.cat(halves[0]).t().to(dtype).contiguous(), torch.stack([cos, -sin], 1).flatten(0, 1).to(dtype)


class _Plan(Plan):
    """The samples of one problem: pixels where they stand, taps mirrored, each as a phase."""

    def __init__(self, problem):
        super().__init__(problem, transform_length, _CHUNK)
        self.map = [_Samples(length, 0, 1, reach.extent) for length, reach in zip(self.lengths, self.reaches)]
        self.taps = [_Samples(length, reach.before, -1, reach.before + 1 + reach.after)
                     for length, reach in zip(self.lengths, self.reaches)]

    def _spectrum(self, x, samples):
        """(..., h, w) to a complex (..., 2, Fh, Fw): P and Q."""
        left, right = _analysis(*samples, self.dtype)
        half = torch.mm(x.reshape(-1, x.shape[-1]).to(self.dtype), right).view(-1, x.shape[-2], right.shape[1])
        return torch.view_as_complex(torch.matmul(left, half).view(*x.shape[:-2], 2, len(left) // 2, -1, 2))

    def _inverse(self, spectrum, samples):
        """A complex (..., 2, Fh, Fw) to the map (..., h, w)."""
        left, right = _synthesis(*samples, self.dtype)
        half = torch.matmul(left, torch.view_as_real(spectrum).view(-1, left.shape[1], len(right)))
        return torch.mm(half.view(-1, len(right)), right).view(*spectrum.shape[:-3], len(left), -1)

    def of_map(self, x):
        return self._spectrum(x, self.map)

    of_gradient = of_map

    def of_kernel(self, weight):
        return self._spectrum(self.in_use(weight), self.taps)

    def product(self, a, b, conjugate=False):
        out = torch.empty_like(a)
        (p, q), (ap, aq) = out.unbind(-3), a.unbind(-3)
        bp, bq = (b.conj_physical() if conjugate else b).unbind(-3)
        sign = -1 if conjugate else 1  # of Q, which is odd in the height
        torch.mul(ap, bp, out=p).addcmul_(aq, bq, value=-sign)
        torch.mul(aq, bp, out=q).addcmul_(ap, bq, value=sign)
        return out

    def add_constant(self, spectrum, values):
        spectrum[..., 0, 0, 0] += values * self.area  # the sum of all pixels

    def output(self, spectrum, out):
        out.copy_(self._inverse(spectrum, self.map))

    grad_input = output

    def grad_taps(self, spectrum, out):
        out.copy_(self._inverse(spectrum, self.taps))


class DFT(Spectral):
    name = 'dft'

    def plan(self, problem):
        return _Plan(problem)

    def can_run(self, problem):
        if problem.device.type != 'cpu':
            return False, f'it runs on cpu, not {problem.device.type}'
        longest = max(reach.circle for reach in Reach.of(problem))
        if longest > _LONGEST:
            return False, f'map plus half the kernel is {longest} long, it runs up to {_LONGEST}'
        return half_precision_and_up(problem.dtype)

    def cost(self, step, problem):
        plan = _Plan(problem)
        maps, kernels = self.transforms[step]
        height, width = plan.lengths

        def seconds(rows, columns):
            return 2 * rows * width * (columns + height) / 130e9 + plan.area * 5e-10

        return 1e-4 * len(plan.chunks) + problem.channels * (
            maps * problem.batch * seconds(problem.height, problem.width) + kernels * seconds(problem.kh, problem.kw))
