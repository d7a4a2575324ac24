"""What the backends that multiply spectra have in common: the three passes, chunk by chunk of channels.

With the circular length H + k // 2, not H + k - 1, the wrapped-around part falls only on what is cropped away.
"""
from typing import Callable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .base import Backend, ConvProblem, Reach, channel_chunks, compute_dtype
from .remembered import remembered
from .workers import each

# Maps are copied to another memory format in pieces that fit into the CPU caches.
_COPY_ELEMENTS = 1 << 17  # of one piece when copying from channels_last
_COPY_CHANNELS = 16  # of one piece when copying to channels_last


class SpectralPlan:
    """Transforms of one problem and their products; a spectrum is complex, its first dimension the batch if it has one.

    A subclass says what length a circle has for a least one, along the height and along the width, how many elements a
    chunk's circles have, and writes what raises here.
    """

    channels_last = False  #: the layout of maps that the transforms want

    def __init__(self, problem: ConvProblem, lengths: Tuple[Callable[[int], int], Callable[[int], int]],
                 elements: int) -> None:
        self.reaches = Reach.of(problem)
        self.lengths = lengths[0](self.reaches[0].circle), lengths[1](self.reaches[1].circle)
        self.area = self.lengths[0] * self.lengths[1]
        self.chunks = channel_chunks(problem, self.area, elements)
        self.dtype = compute_dtype(problem.dtype)

    def lay_out(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) in the layout that the transforms want."""
        if self.channels_last:
            return x if x.is_contiguous(memory_format=torch.channels_last) else planes_to_pixels(x)
        if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
            return x
        return pixels_to_planes(x, torch.empty_like(x, memory_format=torch.contiguous_format))

    def laying_out(self, problem: ConvProblem, maps: int) -> float:
        """Estimated seconds, on a CPU, for so many maps (N, C, H, W) that come or go in the other layout."""
        if problem.channels_last == self.channels_last:
            return 0
        return maps * problem.batch * problem.channels * problem.height * problem.width / 3e9

    def in_use(self, weight: Tensor) -> Tensor:
        """The taps (C, th, tw) of ``weight`` (C, 1, kh, kw) that can meet the map."""
        return weight[(slice(None), 0, *(reach.taps for reach in self.reaches))]

    def of_map(self, x: Tensor) -> Tensor:
        """Spectrum of maps (N, C, H, W)."""
        raise NotImplementedError

    def of_gradient(self, grad: Tensor) -> Tensor:
        """Spectrum of the output's gradient (N, C, H, W)."""
        raise NotImplementedError

    def of_kernel(self, weight: Tensor) -> Tensor:
        """Spectrum of the taps in use of a weight (C, 1, kh, kw)."""
        raise NotImplementedError

    def product(self, a: Tensor, b: Tensor, conjugate: bool = False, out: Optional[Tensor] = None) -> Tensor:
        """``a`` times ``b`` or its conjugate; ``b`` may lack the batch, and ``out`` may be ``a``."""
        return torch.mul(a, b.conj_physical() if conjugate else b, out=out)

    def output(self, spectrum: Tensor, out: Tensor, bias: Optional[Tensor] = None) -> None:
        """The output, into ``out`` (N, C, H, W), from map times kernel, which it may change, and a bias (C,)."""
        raise NotImplementedError

    def grad_input(self, spectrum: Tensor, out: Tensor) -> None:
        """The input's gradient, into ``out`` (N, C, H, W), from gradient times conjugate kernel."""
        raise NotImplementedError

    def grad_taps(self, spectrum: Tensor, out: Tensor) -> None:
        """The gradient of the taps in use, into ``out`` (C, th, tw), from gradient times conjugate map, summed over
        the batch."""
        raise NotImplementedError


def pixels_to_planes(x: Tensor, out: Tensor) -> Tensor:
    """Copy maps (N, C, H, W) that are laid out in channels_last to ``out``.

    As matrices, which PyTorch transposes in blocks, where it copies four dimensions element by element; and some pixels
    at a time, to stay in the caches.
    """
    if out.stride(1) == 1 or not out[:1].is_contiguous():
        return out.copy_(x)
    some = max(1, _COPY_ELEMENTS // x.shape[1])
    pieces = [(columns, pixels.t()) for image, laid_out in zip(x.permute(0, 2, 3, 1).flatten(1, 2), out.flatten(2))
              for pixels, columns in zip(image.split(some), laid_out.split(some, dim=1))]
    each(x.device, Tensor.copy_, *zip(*pieces))
    return out


def planes_to_pixels(x: Tensor) -> Tensor:
    """The maps (N, C, H, W) laid out in channels_last, some channels at a time: the same the other way round."""
    out = torch.empty_like(x, memory_format=torch.channels_last)
    each(x.device, Tensor.copy_, out.split(_COPY_CHANNELS, dim=1), x.split(_COPY_CHANNELS, dim=1))
    return out


class Spectral(Backend):
    """A backend by its :class:`SpectralPlan`.

    The spectra of map and kernel, once taken in the forward pass, serve the gradients as well.
    """

    joint = keeps = True

    def plan(self, problem: ConvProblem) -> SpectralPlan:
        raise NotImplementedError

    #: spectra that each pass takes or undoes: of maps (N, C, H, W), and of kernels
    transforms = {'inference': (2, 0), 'forward': (2, 1), 'grad_input': (2, 1), 'grad_weight': (2, 1),
                  'gradients': (3, 2), 'training': (4, 2)}

    def inference(self, x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem,
                  owner: Optional[Tensor] = None) -> Tensor:
        plan = self.plan(problem)
        taps = remembered(self.name, problem, weight,
                          lambda: each(problem.device, lambda part: plan.of_kernel(weight[part]), plan.chunks), owner)
        return self._forward(plan, x, weight, bias, problem, taps)

    def forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem,
                keep: Optional[List[Tensor]] = None) -> Tensor:
        return self._forward(self.plan(problem), x, weight, bias, problem, keep=keep)

    @staticmethod
    def _forward(plan: SpectralPlan, x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem,
                 kernels: Optional[List[Tensor]] = None, keep: Optional[List[Tensor]] = None) -> Tensor:
        x, out = plan.lay_out(x), torch.empty_like(x, memory_format=problem.memory_format)

        def chunk(part: slice, taps: Optional[Tensor]) -> Optional[Tuple[Tensor, Tensor]]:
            if taps is None:
                taps = plan.of_kernel(weight[part])
            maps = plan.of_map(x[:, part])
            product = plan.product(maps, taps, out=maps if keep is None else None)
            plan.output(product, out[:, part], bias if bias is None else bias[part])
            return None if keep is None else (maps, taps)

        spectra = each(problem.device, chunk, plan.chunks, kernels or [None] * len(plan.chunks))
        if keep is not None:
            keep.extend(spectrum for pair in spectra for spectrum in pair)
        return out

    def grad_input(self, grad: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
        return self._gradients(grad, None, weight, problem)[0]

    def grad_weight(self, grad: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
        return self._gradients(grad, x, None, problem)[1]

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, problem: ConvProblem,
                  kept: Sequence[Tensor] = ()) -> Tuple[Tensor, Tensor]:
        return self._gradients(grad, x, weight, problem, kept)

    def _gradients(self, grad: Tensor, x: Optional[Tensor], weight: Optional[Tensor], problem: ConvProblem,
                   kept: Sequence[Tensor] = ()) -> Tuple[Optional[Tensor], Optional[Tensor]]:
        """Those whose other factor is given, from one transform of the output's gradient."""
        plan = self.plan(problem)
        grad = plan.lay_out(grad)
        x = plan.lay_out(x) if x is not None and not kept else x
        grad_x = None if weight is None else torch.empty_like(grad, memory_format=problem.memory_format)
        grad_w = None if x is None else grad.new_zeros(problem.channels, 1, problem.kh, problem.kw)

        def chunk(part: slice, maps: Optional[Tensor], taps: Optional[Tensor]) -> None:
            spectrum = plan.of_gradient(grad[:, part])
            if weight is not None and grad_x is not None:
                taps = plan.of_kernel(weight[part]) if taps is None else taps
                plan.grad_input(plan.product(spectrum, taps, conjugate=True), grad_x[:, part])
            if x is not None and grad_w is not None:
                maps = plan.of_map(x[:, part]) if maps is None else maps
                product = plan.product(spectrum, maps, conjugate=True, out=spectrum)
                plan.grad_taps(product.sum(0) if len(product) > 1 else product[0], plan.in_use(grad_w[part]))

        none = [None] * len(plan.chunks)
        each(problem.device, chunk, plan.chunks, kept[0::2] or none, kept[1::2] or none)
        return grad_x, grad_w
