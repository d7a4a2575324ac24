"""Convolution in the frequency domain by fast Fourier transforms; see :mod:`.spectral` for the idea.

A two-dimensional transform is computed as two one-dimensional ones, along the width and along the height, with a
transposing copy between them. Both then work on contiguous rows. This takes less than half the time of ``rfft2`` and
``irfft2``, which read memory with large strides. Chunks of channels are small enough for temporary tensors to be reused
by the memory allocator: new memory pages would take more time than the transforms.
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

# Maximum elements of one chunk's padded maps: on a CPU so that they fit into the caches, on a GPU to limit memory.
_CHUNK_ELEMENTS = {'cpu': 1 << 18, 'cuda': 1 << 25}


@lru_cache(maxsize=4096)
def smooth_length(length: int) -> int:
    """Returns the smallest multiple of 4 that is at least ``length`` and has no prime factor larger than 7.

    FFTs of such lengths are fast. An odd length takes twice the time.
    """
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
    """Zero-padded buffers, and the positions of maps and kernels in them.

    The map and the flipped kernel are at (0, 0), the gradient of the output is at ``after``. Their products are then
    at known positions, so the result is a crop and nothing has to be shifted. A spectrum is complex,
    (..., Lw // 2 + 1, Lh) for lengths Lh and Lw along the height and the width: transposed, and half along the width.
    """

    def __init__(self, problem: ConvProblem) -> None:
        super().__init__(problem, (smooth_length, smooth_length), _CHUNK_ELEMENTS[problem.device.type])
        self.device = problem.device
        self.spaces: Dict[Tuple[object, ...], Tensor] = {}
        self.after = self.reaches[0].after, self.reaches[1].after

    def _space(self, kind: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns a buffer of this shape that is zero except where the same ``kind`` of data was written before."""
        key = get_ident(), kind, dtype, tuple(shape)  # each thread has its own buffers
        if key not in self.spaces:
            self.spaces[key] = torch.zeros(shape, dtype=dtype, device=self.device)
        return self.spaces[key]

    def _spectrum(self, kind: str, x: Tensor, top: int = 0, left: int = 0) -> Tensor:
        """Returns the spectrum of ``x``, (..., h, w), placed at row ``top`` and column ``left`` in zeros."""
        *outer, height, width = x.shape
        padded = self._space(kind, (*outer, height, self.lengths[1]), self.dtype)
        padded[..., left:left + width] = x
        half = rfft(padded).transpose(-1, -2)
        turned = self._space(kind, (*half.shape[:-1], self.lengths[0]), half.dtype)
        turned[..., top:top + height] = half
        return fft(turned)

    def _window(self, spectrum: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
        """Returns a crop of the inverse transform, (..., height, width), that starts at (top, left)."""
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
            # frequency 0 is the sum of all pixels; in float16 it would overflow on large maps
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
