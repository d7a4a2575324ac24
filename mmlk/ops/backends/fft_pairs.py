"""Convolution in the frequency domain, for two images of a batch at a time; see :mod:`.spectral` for the idea.

Convolution with a real kernel k is linear, so for two real maps x and y it is k * (x + iy) = (k * x) + i (k * y). Two
images are therefore stored as the real and the imaginary part of one complex map. One complex transform, one product
with the kernel's spectrum and one inverse transform give both results, as real and imaginary part. No symmetry of the
spectrum has to be used, so this needs no transposing copies and reads memory half as often as :mod:`.fft`. The
technique is known as "two for the price of one": Press et al., Numerical Recipes, section 12.3, FFT of two real
functions.

The disadvantage: the two images of a pair share rounding errors, and a value of one that is not finite also makes the
other one not finite. This backend is therefore only chosen for training, where all images of a batch share a loss
anyway. If the number of images is odd, the last one is paired with zeros.
"""
from math import log2
from threading import get_ident
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor
from torch.fft import fft2, ifft2

from .base import ConvProblem, half_precision_and_up
from .fft import smooth_length
from .spectral import SpectralPlan, Spectral

_CHUNK_ELEMENTS = 3 << 18  # maximum elements of one chunk's padded maps, so that they fit into the CPU caches


class FftPairsPlan(SpectralPlan):
    """Zero-padded buffers, and the positions of maps and kernels in them, as in :mod:`.fft`.

    F is the two-dimensional complex Fourier transform, K the spectrum of the kernel. The spectrum of a pair of maps
    (x, y) is X = F(x + iy). The spectrum of a pair of output gradients (g, h) is stored as G = F^-1(h + ig), which is i
    times the conjugate of F(g + ih), divided by the number of elements of the padded map.

    The gradients are correlations, which need one of two spectra conjugated. G is conjugated already, so a product and
    a forward transform are enough: F(G K) = h' + ig' has the gradients of both inputs, and the imaginary part of F(G X)
    is the gradient of the taps, summed over the pair.

    A spectrum is complex, (pairs, C, Lh, Lw); that of a kernel is (C, Lh, Lw).
    """

    def __init__(self, problem: ConvProblem) -> None:
        super().__init__(problem, (smooth_length, smooth_length), _CHUNK_ELEMENTS)
        self.batch = problem.batch
        self.spaces: Dict[Tuple[object, ...], Tensor] = {}
        self.after = self.reaches[0].after, self.reaches[1].after

    def _space(self, kind: str, outer: Tuple[int, ...]) -> Tuple[Tensor, Tensor]:
        """Returns a complex buffer (*outer, *lengths), and a real view of it, (*outer, *lengths, 2)."""
        key = get_ident(), kind, outer  # each thread has its own buffers
        if key not in self.spaces:
            self.spaces[key] = torch.zeros(*outer, *self.lengths, dtype=self.dtype.to_complex(), device='cpu')
        return self.spaces[key], torch.view_as_real(self.spaces[key])

    def _pack(self, kind: str, x: Tensor, top: int, left: int, first: int) -> Tensor:
        """Returns a buffer with pairs of images, ((N + 1) // 2, C, Lh, Lw).

        Args:
            kind: Name of the buffer.
            x: (N, C, H, W).
            top, left: Position of the maps in the buffer.
            first: Part that takes the first image of each pair: 0 for the real one, 1 for the imaginary one.
        """
        space, parts = self._space(kind, ((len(x) + 1) // 2, x.shape[1]))
        window = slice(top, top + x.shape[2]), slice(left, left + x.shape[3])
        x = x.to(self.dtype)
        whole = len(x) // 2
        pair = (x[0:2 * whole:2], x[1::2])[::-1 if first else 1]
        torch.complex(*pair, out=space[(slice(whole), slice(None), *window)])
        if len(x) % 2:
            parts[(-1, slice(None), *window, first)] = x[-1]
        return space

    def _unpack(self, maps: Tensor, top: int, left: int, first: int, out: Tensor) -> None:
        """Writes the crop of ``maps`` at (top, left) to ``out``, (N, C, H, W): the inverse of :meth:`_pack`."""
        parts = torch.view_as_real(maps)[..., top:top + out.shape[-2], left:left + out.shape[-1], :]
        out[0::2] = parts[..., first]
        out[1::2] = parts[:len(out) // 2, ..., 1 - first]

    def of_map(self, x: Tensor) -> Tensor:
        return fft2(self._pack('map', x, 0, 0, 0))

    def of_gradient(self, grad: Tensor) -> Tensor:
        return ifft2(self._pack('gradient', grad, *self.after, 1))

    def of_kernel(self, weight: Tensor) -> Tensor:
        taps = self.in_use(weight).flip(-1, -2)
        space, parts = self._space('kernel', (len(taps), ))
        parts[:, :taps.shape[1], :taps.shape[2], 0] = taps
        return fft2(space)

    def product(self, a: Tensor, b: Tensor, conjugate: bool = False, out: Optional[Tensor] = None) -> Tensor:
        return torch.mul(a, b, out=out)  # the spectra of gradients are conjugated already

    def output(self, spectrum: Tensor, out: Tensor, bias: Optional[Tensor] = None) -> None:
        if bias is not None:
            # frequency 0 is the sum of all pixels
            spectrum[..., 0, 0] += torch.complex(*[bias.to(self.dtype) * self.area] * 2)
        self._unpack(ifft2(spectrum), *self.after, 0, out)

    def grad_input(self, spectrum: Tensor, out: Tensor) -> None:
        self._unpack(fft2(spectrum), 0, 0, 1, out)

    def grad_taps(self, spectrum: Tensor, out: Tensor) -> None:
        window = torch.view_as_real(fft2(spectrum))[..., :out.shape[-2], :out.shape[-1], 1]
        out.copy_(window.flip(-1, -2))


class FFTPairs(Spectral):
    name = 'fft_pairs'
    mixes = True

    def plan(self, problem: ConvProblem) -> SpectralPlan:
        return FftPairsPlan(problem)

    def can_run(self, problem: ConvProblem) -> Tuple[bool, str]:
        if problem.device.type != 'cpu':
            return False, f'it runs on cpu, not {problem.device.type}'
        if not torch.backends.mkl.is_available():
            return False, 'this torch was built without MKL, whose transforms it needs'
        return half_precision_and_up(problem.dtype)

    def cost(self, step: str, problem: ConvProblem) -> float:
        plan = FftPairsPlan(problem)
        maps, kernels = self.transforms[step]
        planes = (maps * ((problem.batch + 1) // 2) + kernels) * problem.channels
        return (1e-4 * len(plan.chunks) + plan.laying_out(problem, maps) +
                planes * plan.area * (5 * log2(plan.area) + 20) / 60e9)
