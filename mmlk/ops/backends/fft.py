"""Convolution as a product of spectra, in chunks of channels that stay in the cache.

A two-dimensional transform is two one-dimensional ones with a transposing copy between them, each over contiguous rows:
less than half the time of ``rfft2`` and ``irfft2``, which run the long strides. Every temporary is small enough for the
allocator to hand out again, for fresh pages cost more than the transforms on them.
"""
from functools import lru_cache
from math import log2
from threading import get_ident
from typing import Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.fft import fft, ifft, irfft, rfft

from .base import ConvProblem, half_precision_and_up
from .spectral import SpectralPlan, Spectral

# Elements of one chunk's padded map, for the CPU's caches; a GPU only needs its memory bounded.
_CHUNK_ELEMENTS = {'cpu': 1 << 18, 'cuda': 1 << 25}


@lru_cache(maxsize=4096)
def smooth_length(length: int) -> int:
    """The smallest multiple of 4 >= length with no prime factor above 7: an odd length takes twice the time."""
    length = -(-length // 4) * 4
    while True:
        rest = length
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 4


class FftPlan(SpectralPlan):
    """Zero-padded workspaces, and where things stand in them.

    Nothing is rolled, for the windows that are read back say where things stood: the map and the flipped taps at 0, the
    output's gradient at ``after``.
    """

    def __init__(self, problem: ConvProblem) -> None:
        super().__init__(problem, (smooth_length, smooth_length), _CHUNK_ELEMENTS[problem.device.type])
        self.device = problem.device
        self.spaces: Dict[Tuple[object, ...], Tensor] = {}
        self.after = self.reaches[0].after, self.reaches[1].after

    def _space(self, kind: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        key = get_ident(), kind, dtype, tuple(shape)  # each thread has its own
        if key not in self.spaces:
            self.spaces[key] = torch.zeros(shape, dtype=dtype, device=self.device)
        return self.spaces[key]

    def _spectrum(self, kind: str, x: Tensor, top: int = 0, left: int = 0) -> Tensor:
        """Spectrum (..., Lw // 2 + 1, Lh) of ``x`` (..., h, w) set into zeros at row ``top``, column ``left``."""
        *outer, height, width = x.shape
        padded = self._space(kind, (*outer, height, self.lengths[1]), self.dtype)
        padded[..., left:left + width] = x
        half = rfft(padded).transpose(-1, -2)
        turned = self._space(kind, (*half.shape[:-1], self.lengths[0]), half.dtype)
        turned[..., top:top + height] = half
        return fft(turned)

    def _window(self, spectrum: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
        """That window of the inverse transform, (..., height, width)."""
        half = ifft(spectrum)[..., top:top + height].transpose(-1, -2).contiguous()
        return irfft(half, n=self.lengths[1])[..., left:left + width]

    def of_map(self, x: Tensor) -> Tensor:
        return self._spectrum('map', x)

    def of_gradient(self, grad: Tensor) -> Tensor:
        return self._spectrum('gradient', grad, *self.after)

    def of_kernel(self, weight: Tensor) -> Tensor:
        return self._spectrum('kernel', self.in_use(weight).flip(-1, -2))

    def output(self, spectrum: Tensor, out: Tensor, bias: Optional[Tensor] = None) -> None:
        if bias is not None:
            # the sum of all pixels, which is past the range of float16 on any large map
            spectrum[..., 0, 0] += bias.to(self.dtype) * self.area
        out.copy_(self._window(spectrum, *self.after, *out.shape[-2:]))

    def grad_input(self, spectrum: Tensor, out: Tensor) -> None:
        out.copy_(self._window(spectrum, 0, 0, *out.shape[-2:]))

    def grad_taps(self, spectrum: Tensor, out: Tensor) -> None:
        out.copy_(self._window(spectrum, 0, 0, *out.shape[-2:]).flip(-1, -2))


class FFT(Spectral):
    name = 'fft'

    def plan(self, problem: ConvProblem) -> SpectralPlan:
        return FftPlan(problem)

    def can_run(self, problem: ConvProblem) -> Tuple[bool, str]:
        if problem.device.type not in _CHUNK_ELEMENTS:
            return False, f'it runs on cpu and cuda, not {problem.device.type}'
        if problem.device.type == 'cpu' and not torch.backends.mkl.is_available():
            return False, 'this torch was built without MKL, whose transforms it needs'
        return half_precision_and_up(problem.dtype)

    def cost(self, step: str, problem: ConvProblem) -> float:
        plan = FftPlan(problem)
        maps, kernels = self.transforms[step]
        planes = (maps * problem.batch + kernels) * problem.channels
        rate, copied = (30e9, plan.laying_out(problem, maps)) if problem.device.type == 'cpu' else (1e12, 0)
        return 2e-4 * len(plan.chunks) + copied + planes * plan.area * (2.5 * log2(plan.area) + 10) / rate
