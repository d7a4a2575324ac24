"""Global filters: a learned filter for each channel, as large as the map, applied in the frequency domain.

GFNet, Rao et al., NeurIPS 2021, arXiv:2107.00645, section 3.2; HorNet's (arXiv:2207.14284) is the same on half the
channels.
"""
import math
from typing import Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import symbolic


def spectrum_size(size: Tuple[int, int]) -> Tuple[int, int]:
    """Height and width of the half spectrum that a real (H, W) map has: the rest mirrors it."""
    return size[0], size[1] // 2 + 1


def resize_filter(weight: Tensor, size: Tuple[int, int]) -> Tensor:
    """A filter (C, h, w, 2) at another size of the half spectrum: (C, *size, 2), bilinear with aligned corners.

    The first row and column, which hold the lowest frequencies, and the last stay where they are. A filter that has
    the size is returned as it is.
    """
    if not symbolic(*size) and tuple(weight.shape[1:3]) == tuple(size):
        return weight
    resized = F.interpolate(weight.permute(3, 0, 1, 2), tuple(size), mode='bilinear', align_corners=True)
    return resized.permute(1, 2, 3, 0).contiguous()


def _symmetric(response: Tensor, width: int) -> Tensor:
    """The filter (C, H, W // 2 + 1), complex, of which nothing is left to the FFT library to drop.

    A real map of this width has conjugate pairs (row k, row -k) in the first column of its half spectrum and, when the
    width is even, in the last. Learned filters break them. CPU libraries then take the part that keeps the pairs, which
    is what the official results rest on; cuFFT and rocFFT promise nothing. This is that part.
    """
    def part(column: Tensor) -> Tensor:
        return (column + column.flip(1).roll(1, 1).conj()) / 2

    if symbolic(width):
        column = torch.arange(response.shape[2], device=response.device)[:, None]
        both = map(torch.view_as_real, (part(response), response))  # ONNX does not choose between complex numbers
        return torch.view_as_complex(torch.where((column == 0) | (2 * column == width), *both))
    if width % 2:
        return torch.cat((part(response[..., :1]), response[..., 1:]), 2)
    return torch.cat((part(response[..., :1]), response[..., 1:-1], part(response[..., -1:])), 2)


def global_filter2d(x: Tensor, weight: Tensor) -> Tensor:
    """Circular convolution of each channel with a filter given in the frequency domain.

    Everything between input and output is computed in float32 (float64 for float64), for half precision has no FFT of
    most sizes; autocast does not change that.

    Args:
        x: Map (N, C, H, W).
        weight: Filter (C, h, w, 2), real and imaginary part, of the half spectrum of some map size; at another than
            (H, W // 2 + 1) it is resized.

    Returns:
        (N, C, H, W) in the dtype of ``x``.

    Raises:
        ValueError: The shapes do not fit.
    """
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[0] != x.shape[1] or weight.shape[3] != 2:
        raise ValueError('global_filter2d takes a map (N, C, H, W) and a filter (C, h, w, 2), '
                         f'got {tuple(x.shape)} and {tuple(weight.shape)}')
    if not symbolic(*x.shape) and not x.numel():  # there is no FFT of nothing; its gradients are zeros
        return x * weight.sum().to(x.dtype)
    size = tuple(x.shape[2:])
    dtype = torch.promote_types(x.dtype, torch.float32)
    response = torch.view_as_complex(resize_filter(weight.to(dtype), spectrum_size(size)))
    spectrum = torch.fft.rfft2(x.to(dtype), norm='ortho') * _symmetric(response, size[1])
    return torch.fft.irfft2(spectrum, s=size, norm='ortho').to(x.dtype)


def multiply_adds(shape: Sequence[int], dim: Sequence[int] = (-2, -1)) -> int:
    """Multiply-adds of one Fourier transform of a real map, or of the inverse that gives it, over ``dim``.

    n ceil(log2(n)) for each map of n values, which is how GFNet's and HorNet's authors count (GFNet's issue 15 and
    ``calc_flops.py`` of HorNet). A global filter takes two; the product between them is not counted, as no product of
    maps is.
    """
    values = math.prod(shape[d] for d in dim)
    return math.prod(shape) * math.ceil(math.log2(values))
