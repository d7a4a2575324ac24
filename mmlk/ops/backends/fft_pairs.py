"""Convolution as a product of spectra, two images of a batch as the real and imaginary parts of one complex map.

A real kernel leaves the parts apart, so one complex transform serves two images: no transposing copies, half as many
passes over the memory as :mod:`.fft` takes. The price is that two images share their rounding errors, and what is not
finite in one of them spoils the other: it is chosen for training alone, whose images share a loss anyway. Images left
over are paired with zeros.
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

_CHUNK_ELEMENTS = 3 << 18  # elements of one chunk's padded maps, for the caches


class FftPairsPlan(SpectralPlan):
    """Zero-padded workspaces, and where things stand in them: as in :mod:`.fft`.

    A pair of maps (x, y) is X = F(x + iy). A pair of gradients (g, h) is held as G = F^-1(h + ig), which is i times the
    conjugate of F(g + ih), up to the circle's area. So a correlation, which wants one factor conjugated, is a plain
    product and a forward transform: F(G K) = h' + ig' is the inputs' gradients, and the imaginary part of F(G X) the
    taps' gradient, already summed over the pair.
    """

    def __init__(self, problem: ConvProblem) -> None:
        super().__init__(problem, (smooth_length, smooth_length), _CHUNK_ELEMENTS)
        self.batch = problem.batch
        self.spaces: Dict[Tuple[object, ...], Tensor] = {}
        self.after = self.reaches[0].after, self.reaches[1].after

    def _space(self, kind: str, outer: Tuple[int, ...]) -> Tuple[Tensor, Tensor]:
        """A workspace (*outer, *lengths), and the same as real numbers (*outer, *lengths, 2)."""
        key = get_ident(), kind, outer  # each thread has its own
        if key not in self.spaces:
            self.spaces[key] = torch.zeros(*outer, *self.lengths, dtype=self.dtype.to_complex(), device='cpu')
        return self.spaces[key], torch.view_as_real(self.spaces[key])

    def _pack(self, kind: str, x: Tensor, top: int, left: int, first: int) -> Tensor:
        """Pairs of ``x`` (N, C, H, W) in a workspace, the earlier image as part ``first`` (0: real, 1: imaginary)."""
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
        return torch.mul(a, b, out=out)  # what wants a conjugate comes as one

    def output(self, spectrum: Tensor, out: Tensor, bias: Optional[Tensor] = None) -> None:
        if bias is not None:
            spectrum[..., 0, 0] += torch.complex(*[bias.to(self.dtype) * self.area] * 2)  # the sums of all pixels
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
