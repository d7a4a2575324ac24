"""The common part of the backends that convolve in the frequency domain.

Convolution theorem: the discrete Fourier transform of a circular convolution is the product of the transforms. The
direct method multiplies every pixel with every tap of the kernel. Transforming the map and the kernel, multiplying the
two spectra element by element, and transforming back costs a number of operations that hardly depends on the size of
the kernel, so it is faster for large kernels. The gradients work the same way: they are correlations, for which one of
the two spectra is conjugated. See Oppenheim and Schafer, Discrete-Time Signal Processing, chapter 8, and Mathieu,
Henaff and LeCun, Fast Training of Convolutional Networks through FFTs, arXiv:1312.5851.

Length: a circular convolution of length L adds the part of the result beyond L to its beginning. The complete result of
a map of H rows with k taps has H + k - 1 rows, so usually L = H + k - 1 is taken. A "same" convolution keeps H of these
rows and crops about k // 2 of them at either end. L = H + k // 2 is therefore enough: rows that wrap around only fall
on rows that are cropped. Taps that never overlap the map are left out first, see :class:`.base.Reach`.

The channels are independent of each other, so they are computed in chunks whose temporary tensors fit into the caches,
on several threads (:mod:`.workers`).
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
    """The transforms for one problem, and the products of spectra.

    A spectrum is a complex tensor. Its other dimensions are the subclass's choice, but the first is the batch, except
    for the spectrum of a kernel. A subclass implements the methods that raise NotImplementedError here.

    Args:
        problem: The problem.
        lengths: Two functions, for the height and for the width. Each returns the length of the transform for a given
            minimum length.
        elements: Maximum number of elements of a chunk of channels, in maps that are padded to these lengths.
    """

    channels_last = False  #: whether the transforms take maps in channels_last

    def __init__(self, problem: ConvProblem, lengths: Tuple[Callable[[int], int], Callable[[int], int]],
                 elements: int) -> None:
        self.reaches = Reach.of(problem)
        self.lengths = lengths[0](self.reaches[0].circle), lengths[1](self.reaches[1].circle)
        self.area = self.lengths[0] * self.lengths[1]
        self.chunks = channel_chunks(problem, self.area, elements)
        self.dtype = compute_dtype(problem.dtype)

    def lay_out(self, x: Tensor) -> Tensor:
        """Returns the maps ``x`` (N, C, H, W) in the memory format that the transforms take; a copy only if needed."""
        if self.channels_last:
            return x if x.is_contiguous(memory_format=torch.channels_last) else planes_to_pixels(x)
        if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
            return x
        return pixels_to_planes(x, torch.empty_like(x, memory_format=torch.contiguous_format))

    def laying_out(self, problem: ConvProblem, maps: int) -> float:
        """Returns the estimated seconds on a CPU for converting ``maps`` tensors (N, C, H, W) to the other format."""
        if problem.channels_last == self.channels_last:
            return 0
        return maps * problem.batch * problem.channels * problem.height * problem.width / 3e9

    def in_use(self, weight: Tensor) -> Tensor:
        """Returns a view of the taps of ``weight`` (C, 1, kh, kw) that can overlap the map, (C, th, tw)."""
        return weight[(slice(None), 0, *(reach.taps for reach in self.reaches))]

    def of_map(self, x: Tensor) -> Tensor:
        """Returns the spectrum of the input, (N, C, H, W)."""
        raise NotImplementedError

    def of_gradient(self, grad: Tensor) -> Tensor:
        """Returns the spectrum of the gradient of the output, (N, C, H, W)."""
        raise NotImplementedError

    def of_kernel(self, weight: Tensor) -> Tensor:
        """Returns the spectrum of the taps of a weight (C, 1, kh, kw) that can overlap the map."""
        raise NotImplementedError

    def product(self, a: Tensor, b: Tensor, conjugate: bool = False, out: Optional[Tensor] = None) -> Tensor:
        """Returns ``a * b`` or ``a * b.conj()``. ``out`` may be ``a``, and ``b`` may lack the batch dimension."""
        return torch.mul(a, b.conj_physical() if conjugate else b, out=out)

    def output(self, spectrum: Tensor, out: Tensor, bias: Optional[Tensor] = None) -> None:
        """Computes the output.

        Args:
            spectrum: Product of the spectra of input and kernel. It may be changed.
            out: (N, C, H, W), to which the result is written.
            bias: (C,) or None.
        """
        raise NotImplementedError

    def grad_input(self, spectrum: Tensor, out: Tensor) -> None:
        """Computes the gradient of the input.

        Args:
            spectrum: Product of the spectrum of the output's gradient and the conjugate spectrum of the kernel.
            out: (N, C, H, W), to which the result is written.
        """
        raise NotImplementedError

    def grad_taps(self, spectrum: Tensor, out: Tensor) -> None:
        """Computes the gradient of the taps that can overlap the map.

        Args:
            spectrum: Product of the spectrum of the output's gradient and the conjugate spectrum of the input, summed
                over the batch.
            out: (C, th, tw), to which the result is written.
        """
        raise NotImplementedError


def pixels_to_planes(x: Tensor, out: Tensor) -> Tensor:
    """Copies maps (N, C, H, W) in channels_last to ``out`` of the same shape, and returns ``out``.

    The copy is done as transpositions of matrices, which PyTorch does in blocks, whereas it copies a tensor of four
    dimensions element by element. Each matrix has few enough pixels to fit into the caches.
    """
    if out.stride(1) == 1 or not out[:1].is_contiguous():
        return out.copy_(x)
    some = max(1, _COPY_ELEMENTS // x.shape[1])
    pieces = [(columns, pixels.t()) for image, laid_out in zip(x.permute(0, 2, 3, 1).flatten(1, 2), out.flatten(2))
              for pixels, columns in zip(image.split(some), laid_out.split(some, dim=1))]
    each(x.device, Tensor.copy_, *zip(*pieces))
    return out


def planes_to_pixels(x: Tensor) -> Tensor:
    """Returns a copy of the maps (N, C, H, W) in channels_last, made a few channels at a time."""
    out = torch.empty_like(x, memory_format=torch.channels_last)
    each(x.device, Tensor.copy_, out.split(_COPY_CHANNELS, dim=1), x.split(_COPY_CHANNELS, dim=1))
    return out


class Spectral(Backend):
    """Base class of the spectral backends. A subclass gives the transforms, by :meth:`plan`.

    In training, the spectra of input and kernel are saved in the forward pass and used again for the gradients.
    """

    joint = keeps = True

    def plan(self, problem: ConvProblem) -> SpectralPlan:
        """Returns the transforms for a problem."""
        raise NotImplementedError

    #: number of forward and inverse transforms of each step: of maps (N, C, H, W), of kernels
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
        """Computes the output.

        ``kernels`` has the spectra of the kernels, one per chunk; None to compute them. If ``keep`` is a list, the
        spectra of input and kernel of each chunk are appended to it, in turn.
        """
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
        """Computes the gradient of the input if ``weight`` is given, and that of the weight if ``x`` is given.

        The gradient of the output is transformed once. ``kept`` has what :meth:`_forward` appended to ``keep``.
        """
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
