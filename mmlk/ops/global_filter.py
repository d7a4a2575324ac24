"""Global filters: each channel is multiplied by a learned filter in the frequency domain.

The layer computes the two-dimensional Fourier transform of a map, multiplies each frequency by a learned complex
number, and transforms back. By the convolution theorem this is a circular convolution with a kernel as large as the
map, so one layer sees the whole map, in O(HW log HW) per channel. The parameters are the spectrum of that kernel, not
the kernel.

The spectrum of a real map is symmetric (the value at -f is the conjugate of that at f), so only half of it, H x (W // 2
+ 1), is computed and has parameters. A filter belongs to one map size; for another one it is interpolated.

GFNet, Rao et al., NeurIPS 2021, arXiv:2107.00645, section 3.2. HorNet (arXiv:2207.14284) has the same operator on half
of its channels.
"""
import math
from typing import Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import symbolic


def spectrum_size(size: Tuple[int, int]) -> Tuple[int, int]:
    """Returns the height and the width of the half spectrum of a real map of size (H, W)."""
    return size[0], size[1] // 2 + 1


def resize_filter(weight: Tensor, size: Tuple[int, int]) -> Tensor:
    """Resizes a filter (C, h, w, 2) to another size of the half spectrum; returns (C, *size, 2).

    The interpolation is bilinear with aligned corners, so the first and the last row and column keep their values. A
    filter that has the size already is returned unchanged.
    """
    if not symbolic(*size) and tuple(weight.shape[1:3]) == tuple(size):
        return weight
    resized = F.interpolate(weight.permute(3, 0, 1, 2), tuple(size), mode='bilinear', align_corners=True)
    return resized.permute(1, 2, 3, 0).contiguous()


def _symmetric(response: Tensor, width: int) -> Tensor:
    """Makes a filter symmetric where the half spectrum of a real map is.

    In the first column of the half spectrum of a real map, and in the last one if the width is even, the rows k and -k
    are conjugates. Learned filters do not keep this symmetry, so the inverse transform of the product is not defined.
    The FFT libraries for CPUs use the symmetric part, and so do the official results; cuFFT and rocFFT do not specify
    what they do. Taking the symmetric part first gives the same result everywhere.

    Args:
        response: The filter, (C, H, W // 2 + 1), complex.
        width: W.

    Returns:
        (C, H, W // 2 + 1), complex.
    """
    def part(column: Tensor) -> Tensor:
        return (column + column.flip(1).roll(1, 1).conj()) / 2

    if symbolic(width):
        column = torch.arange(response.shape[2], device=response.device)[:, None]
        both = map(torch.view_as_real, (part(response), response))  # ONNX has no torch.where of complex numbers
        return torch.view_as_complex(torch.where((column == 0) | (2 * column == width), *both))
    if width % 2:
        return torch.cat((part(response[..., :1]), response[..., 1:]), 2)
    return torch.cat((part(response[..., :1]), response[..., 1:-1], part(response[..., -1:])), 2)


def global_filter2d(x: Tensor, weight: Tensor) -> Tensor:
    """Circular convolution of each channel with a filter that is given in the frequency domain.

    It is computed in float32, or float64 for float64, also under autocast, because most sizes have no FFT in half
    precision.

    Args:
        x: Map (N, C, H, W).
        weight: Filter (C, h, w, 2), with real and imaginary part. If (h, w) is not (H, W // 2 + 1), it is resized by
            :func:`resize_filter`.

    Returns:
        (N, C, H, W) in the dtype of ``x``.

    Raises:
        ValueError: The shapes do not match.
    """
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[0] != x.shape[1] or weight.shape[3] != 2:
        raise ValueError('global_filter2d takes a map (N, C, H, W) and a filter (C, h, w, 2), '
                         f'got {tuple(x.shape)} and {tuple(weight.shape)}')
    if not symbolic(*x.shape) and not x.numel():  # an FFT of an empty tensor is an error; gradients are zeros
        return x * weight.sum().to(x.dtype)
    size = tuple(x.shape[2:])
    dtype = torch.promote_types(x.dtype, torch.float32)
    response = torch.view_as_complex(resize_filter(weight.to(dtype), spectrum_size(size)))
    spectrum = torch.fft.rfft2(x.to(dtype), norm='ortho') * _symmetric(response, size[1])
    return torch.fft.irfft2(spectrum, s=size, norm='ortho').to(x.dtype)


def multiply_adds(shape: Sequence[int], dim: Sequence[int] = (-2, -1)) -> int:
    """Returns the multiply-adds of a Fourier transform of real maps over ``dim``, or of its inverse.

    It is n * ceil(log2(n)) for each map of n values, as the authors of GFNet and HorNet count (GFNet's issue 15 and
    ``calc_flops.py`` of HorNet). A global filter needs two transforms. The product between them is not counted, like
    all element-wise products.

    Args:
        shape: Shape of the real maps.
        dim: The transformed dimensions.
    """
    values = math.prod(shape[d] for d in dim)
    return math.prod(shape) * math.ceil(math.log2(values))
