"""Convolution as a product of spectra, in chunks of channels that stay in the cache.

The circular length is H + k // 2, not H + k - 1: the wrapped-around part falls only on what is cropped away.
"""
from functools import lru_cache
from math import log2

import torch
import torch.nn.functional as F
from torch.fft import irfft2, rfft2

from .base import Backend, Problem

# Elements of one chunk's spatial workspace: about 2 MB in float32, a core's share of a last-level cache.
_CHUNK_ELEMENTS = 1 << 19


@lru_cache(maxsize=None)
def smooth_length(length: int) -> int:
    """The smallest integer >= length with no prime factor above 5: a fast transform length."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


class _Plan:
    """Transform lengths and kernel placement of one problem."""

    def __init__(self, problem: Problem):
        self.size = (problem.height, problem.width)
        self.taps, self.first = [], []
        lengths = []
        for extent, k in zip(self.size, (problem.kh, problem.kw)):
            # taps further than the map is long only ever meet padding
            before, after = min((k - 1) // 2, extent - 1), min(k // 2, extent - 1)
            self.first.append((k - 1) // 2 - before)
            self.taps.append((before, before + 1 + after))
            lengths.append(smooth_length(extent + max(before, after)))
        self.lengths = tuple(lengths)
        per_channel = max(1, problem.batch) * lengths[0] * lengths[1]
        self.chunk = max(1, min(problem.channels, _CHUNK_ELEMENTS // per_channel))

    def spectrum(self, x):
        return rfft2(x, s=self.lengths)

    def kernel_spectrum(self, weight):
        """Spectrum (C, L1, L2 // 2 + 1) of the kernel with its centre tap at the origin."""
        (top, th), (left, tw) = self.taps
        kernel = weight[:, 0, self.first[0]:self.first[0] + th, self.first[1]:self.first[1] + tw]
        kernel = F.pad(kernel, (0, self.lengths[1] - tw, 0, self.lengths[0] - th))
        return rfft2(kernel.roll((-top, -left), (-2, -1)))

    def crop(self, spectrum):
        return irfft2(spectrum, s=self.lengths)[..., :self.size[0], :self.size[1]]

    def kernel_from(self, spectrum, weight_shape):
        (top, th), (left, tw) = self.taps
        full = irfft2(spectrum, s=self.lengths).roll((top, left), (-2, -1))
        grad = full.new_zeros(weight_shape)
        grad[:, 0, self.first[0]:self.first[0] + th, self.first[1]:self.first[1] + tw] = full[:, :th, :tw]
        return grad


class FFT(Backend):
    name = 'fft'

    def can_run(self, device, dtype):
        if device.type not in ('cpu', 'cuda'):
            return False, f'it runs on cpu and cuda, not {device.type}'
        if dtype not in (torch.float32, torch.float64):
            return False, f'transforms run in float32 and float64, not {dtype}'
        if device.type == 'cpu' and not torch.backends.mkl.is_available():
            return False, 'this torch was built without MKL, whose transforms it needs'
        return True, ''

    def cost(self, step, problem):
        plan = _Plan(problem)
        area = plan.lengths[0] * plan.lengths[1]
        planes = 2 * problem.batch * problem.channels + problem.channels
        return 1e-4 + planes * area * (2.5 * log2(area) + 4) / 12e9

    def forward(self, x, weight, problem):
        return self._filter(x, weight, problem, torch.conj)

    def grad_input(self, grad, weight, problem):
        return self._filter(grad, weight, problem, lambda spectrum: spectrum)

    @staticmethod
    def _filter(x, weight, problem, turn):
        """Correlation with the kernel when ``turn`` conjugates its spectrum, convolution when it does not."""
        plan = _Plan(problem)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for c in range(0, problem.channels, plan.chunk):
            part = slice(c, c + plan.chunk)
            out[:, part] = plan.crop(plan.spectrum(x[:, part]).mul_(turn(plan.kernel_spectrum(weight[part]))))
        return out

    def grad_weight(self, grad, x, problem):
        plan = _Plan(problem)
        out = x.new_empty(problem.channels, 1, problem.kh, problem.kw)
        for c in range(0, problem.channels, plan.chunk):
            part = slice(c, c + plan.chunk)
            product = plan.spectrum(x[:, part]).mul_(plan.spectrum(grad[:, part]).conj()).sum(0)
            out[part] = plan.kernel_from(product, out[part].shape)
        return out
