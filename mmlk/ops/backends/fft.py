"""Convolution as a product of spectra, in chunks of channels that stay in the cache.

The circular length is H + k // 2, not H + k - 1: the wrapped-around part falls only on what is cropped away. A two-
dimensional transform is two one-dimensional ones with a transposing copy between them, each over contiguous rows: less
than half the time of ``rfft2`` and ``irfft2``, which run the long strides. Every temporary is small enough for the
allocator to hand out again, for fresh pages cost more than the transforms on them.
"""
from functools import lru_cache
from math import log2

import torch
from torch.fft import fft, ifft, irfft, rfft

from .base import Backend, Reach, channel_chunks, compute_dtype, half_precision_and_up

# Elements of one chunk's padded map, for the CPU's caches; a GPU only needs its memory bounded.
_CHUNK = {'cpu': 1 << 19, 'cuda': 1 << 25}


@lru_cache(maxsize=None)
def smooth_length(length: int) -> int:
    """The smallest multiple of 4 >= length with no prime factor above 7: odd lengths take twice the time per element."""
    length = -(-length // 4) * 4
    while True:
        rest = length
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 4


class _Plan:
    """Lengths, chunks and the zero-padded workspaces of one call.

    Nothing is rolled, for the window that is read back says where things stood: with map and kernel at 0, the output is
    map x flipped kernel from ``after``, the input's gradient is gradient x kernel from ``before``; with the map at
    ``before``, the kernel's gradient is map x conj(gradient) from 0.
    """

    def __init__(self, problem):
        self.rows, self.columns = Reach.of(problem)
        self.lengths = smooth_length(self.rows.circle), smooth_length(self.columns.circle)
        self.area = self.lengths[0] * self.lengths[1]
        self.chunks = channel_chunks(problem, self.area, _CHUNK[problem.device.type])
        self.device, self.dtype = problem.device, compute_dtype(problem.dtype)
        self.spaces = {}

    def _space(self, kind, shape, dtype):
        key = kind, dtype, tuple(shape)
        if key not in self.spaces:
            self.spaces[key] = torch.zeros(shape, dtype=dtype, device=self.device)
        return self.spaces[key]

    def spectrum(self, kind, x, top=0, left=0):
        """Spectrum (..., Lw // 2 + 1, Lh) of ``x`` (..., h, w) set into zeros at row ``top``, column ``left``."""
        *outer, height, width = x.shape
        padded = self._space(kind, (*outer, height, self.lengths[1]), self.dtype)
        padded[..., left:left + width] = x
        half = rfft(padded).transpose(-1, -2)
        turned = self._space(kind, (*half.shape[:-1], self.lengths[0]), half.dtype)
        turned[..., top:top + height] = half
        return fft(turned)

    def kernel(self, weight):
        """The taps in use, (C, th, tw)."""
        return weight[:, 0, self.rows.taps, self.columns.taps]

    def inverse(self, spectrum, top, left, height, width):
        """The window of the inverse transform (..., height, width) at row ``top``, column ``left``."""
        half = ifft(spectrum)[..., top:top + height].transpose(-1, -2).contiguous()
        return irfft(half, n=self.lengths[1])[..., left:left + width]


class FFT(Backend):
    name = 'fft'
    joint = True

    def can_run(self, problem):
        if problem.device.type not in _CHUNK:
            return False, f'it runs on cpu and cuda, not {problem.device.type}'
        if problem.device.type == 'cpu' and not torch.backends.mkl.is_available():
            return False, 'this torch was built without MKL, whose transforms it needs'
        return half_precision_and_up(problem.dtype)

    def cost(self, step, problem):
        plan = _Plan(problem)
        maps, kernels = (3, 2) if step == 'gradients' else (2, 1)
        planes = (maps * problem.batch + kernels) * problem.channels
        rate = 30e9 if problem.device.type == 'cpu' else 1e12
        return 2e-4 * len(plan.chunks) + planes * plan.area * (2.5 * log2(plan.area) + 10) / rate

    def forward(self, x, weight, bias, problem):
        plan = _Plan(problem)
        out = torch.empty_like(x, memory_format=problem.memory_format)
        for part in plan.chunks:
            product = plan.spectrum('map', x[:, part])
            product.mul_(plan.spectrum('kernel', plan.kernel(weight[part]).flip(-1, -2)))
            if bias is not None:  # a constant is the sum of all pixels, shared out among them
                product[..., 0, 0] += bias[part] * plan.area
            out[:, part] = plan.inverse(product, plan.rows.after, plan.columns.after, problem.height, problem.width)
        return out

    def grad_input(self, grad, weight, problem):
        return self._gradients(grad, None, weight, problem)[0]

    def grad_weight(self, grad, x, problem):
        return self._gradients(grad, x, None, problem)[1]

    def gradients(self, grad, x, weight, problem):
        return self._gradients(grad, x, weight, problem)

    @staticmethod
    def _gradients(grad, x, weight, problem):
        """Those whose other factor is given, from one transform of the output gradient."""
        plan = _Plan(problem)
        rows, columns = plan.rows, plan.columns
        grad_x = None if weight is None else torch.empty_like(grad, memory_format=problem.memory_format)
        grad_w = None if x is None else grad.new_zeros(problem.channels, 1, problem.kh, problem.kw)
        for part in plan.chunks:
            spectrum = plan.spectrum('gradient', grad[:, part])
            if weight is not None:
                product = spectrum * plan.spectrum('kernel', plan.kernel(weight[part]))
                grad_x[:, part] = plan.inverse(product, rows.before, columns.before, problem.height, problem.width)
            if x is not None:
                product = plan.spectrum('map', x[:, part], rows.before, columns.before)
                product = product.mul_(spectrum.conj_physical_()).sum(0)
                taps = plan.kernel(grad_w[part])
                taps.copy_(plan.inverse(product, 0, 0, *taps.shape[-2:]))
        return grad_x, grad_w
