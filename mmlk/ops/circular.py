"""Global circular convolution: a kernel as long as the map, which wraps around at the map's end.

Each output along one axis is a weighted sum of all H (or W) inputs along that axis, so one layer sees the whole map.
When the kernel reaches the end of the map, it continues at the beginning, as if the map were repeated periodically. No
zeros are padded, and every output uses every tap of the kernel.

There are two ways to compute it. The direct form appends the map, without its last element, to itself and runs an
ordinary convolution without padding: O(n^2) for an axis of n elements. The FFT form uses the convolution theorem, which
holds for circular convolutions exactly: transform map and kernel, multiply the spectra, transform back: O(n log n).
The kernel is not flipped (it is a correlation, as in all of PyTorch), so its spectrum is conjugated.

ParC-Net, Zhang et al., ECCV 2022, arXiv:2203.03952, and Fast-ParC, Yang et al., arXiv:2210.04020, which
introduced the FFT form.
"""
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends.base import compute_dtype, given_dtypes
from .layout import exporting

METHODS = ('direct', 'fft')


class _Rates(NamedTuple):
    """The speed of a device, for estimates of the time."""

    call: float  #: fixed seconds of the FFT form
    element: float  #: seconds per element of the map or the kernel that is transformed
    depthwise: float  #: multiply-adds per second of the direct form, depthwise
    dense: float  #: the same with several channels per group, and of the product of spectra
    depthwise_w: float  #: the same, depthwise along W in training
    channels_last: float  #: in channels_last: factor by which ``depthwise`` is faster and transforms are slower


# The rates of the CPU are fitted to measurements on one core. Of 126 cases (axes of 7 to 168, depthwise and dense, both
# memory formats, inference and training) the estimate chooses the faster form in 106. In the others, its choice takes
# at most 1.4 times as long. Training along W is slow because of oneDNN's gradient of the weight. More threads are
# assumed to speed up both forms equally. The rates of the GPU are taken from the two-dimensional backends and have not
# been measured.
_RATES = {
    'cpu': _Rates(6e-5, 1.4e-9, 9e9, 5e10, 2.5e9, 1.6),
    'cuda': _Rates(5e-5, 2.5e-11, 2e12, 1e13, 2e12, 1.0),
}
if not torch.backends.mkl.is_available():
    del _RATES['cpu']


def is_channels_last(x: Tensor) -> bool:
    """Returns whether the channels of ``x``, (N, C, H, W), are adjacent in memory (channels_last, or a slice of it)."""
    return x.stride(1) == 1 and not x.is_contiguous()


def _axis(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> int:
    """Checks the shapes and returns the dimension of the kernel, 2 (H) or 3 (W). Raises ValueError."""
    if x.dim() != 4 or weight.dim() != 4:
        raise ValueError('circular_conv takes input (N, C, H, W) and weight (O, C / groups, H, 1) or '
                         f'(O, C / groups, 1, W), got {tuple(x.shape)} and {tuple(weight.shape)}')
    (_, channels, height, width), (outputs, inputs, *kernel) = x.shape, weight.shape
    if not inputs or channels % inputs or outputs % (channels // inputs):
        raise ValueError(f'weight {tuple(weight.shape)} does not divide into groups of {channels} channels')
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f'bias must have shape ({outputs},), got {tuple(bias.shape)}')
    if kernel == [height, 1]:
        return 2
    if kernel == [1, width]:
        return 3
    raise ValueError(f'a global kernel on a {height}x{width} map is {height}x1 or 1x{width}, '
                     f'got {kernel[0]}x{kernel[1]}')


def _direct(x: Tensor, weight: Tensor, bias: Optional[Tensor], axis: int, groups: int) -> Tensor:
    """Computes the convolution of the map, appended to itself, without padding."""
    length = x.shape[axis]
    return F.conv2d(torch.cat((x, x.narrow(axis, 0, length - 1)), axis), weight, bias, groups=groups)


def _fft(x: Tensor, weight: Tensor, bias: Optional[Tensor], axis: int, groups: int) -> Tensor:
    """Computes the convolution by the product of spectra."""
    (batch, channels, *_), outputs = x.shape, weight.shape[0]
    spectrum = torch.fft.rfft(x, dim=axis)
    taps = torch.fft.rfft(weight, dim=axis).conj()  # conjugated, because the kernel is not flipped
    if groups == channels == outputs:
        product = spectrum * taps.squeeze(1)
    else:  # for each frequency, a matrix product over the channels of each group
        spectrum, taps = spectrum.movedim(axis, 0), taps.movedim(axis, 0)
        columns = spectrum.reshape(-1, batch, groups, channels // groups, x.shape[5 - axis])
        matrices = taps.reshape(-1, 1, groups, outputs // groups, channels // groups)
        product = (matrices @ columns).flatten(2, 3).movedim(0, axis)
    out = torch.fft.irfft(product, n=x.shape[axis], dim=axis)
    return out if bias is None else out + bias.reshape(-1, 1, 1)


def cheapest(x: Tensor, weight: Tensor, axis: int) -> str:
    """Returns the method that is estimated to be faster, ``'direct'`` or ``'fft'``.

    On a CPU, ``'fft'`` is faster from about 30 elements along the axis, with maps in channels_last from about 70, along
    W in training from about 10, and with dense kernels from about 15.

    Args:
        x: (N, C, H, W).
        weight: (O, C / groups, H, 1) or (O, C / groups, 1, W).
        axis: Dimension of the kernel, 2 or 3.
    """
    kind = x.device.type
    if kind not in _RATES:
        return 'direct'
    rates, length = _RATES[kind], x.shape[axis]
    pixels, outputs = x.numel() // x.shape[1], weight.shape[0]
    products = pixels * weight[..., :1, :1].numel()  # of all pixels with a single tap
    learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    slower = rates.channels_last if is_channels_last(x) else 1.0
    if weight.shape[1] > 1:
        rate = rates.dense
    elif axis == 3 and learning:
        rate = rates.depthwise_w
    else:
        rate = rates.depthwise * slower
    transformed = x.numel() + pixels * outputs + weight.numel()
    # a complex product is four real ones; half of the spectrum is computed
    fft = rates.call + rates.element * slower * transformed + 4 * products * (length // 2 + 1) / length / rates.dense
    return 'fft' if fft < products * length / rate else 'direct'


def circular_conv(input: Tensor, weight: Tensor, bias: Optional[Tensor] = None, *,
                  method: Optional[str] = None) -> Tensor:
    """Circular convolution along H or W with a kernel as long as the map.

    ``out[..., i, :] = bias + sum over k of weight[..., k, 0] * input[..., (i + k) % H, :]``, or the same along W. The
    shape of the kernel determines the axis. Half precision is computed in float32, also under autocast.

    Args:
        input: (N, C, H, W), any H and W.
        weight: (O, C / groups, H, 1) or (O, C / groups, 1, W); (C, 1, H, 1) is depthwise.
        bias: (O,) or None.
        method: ``'direct'``, one ordinary convolution in O(n^2), or ``'fft'``, a product of spectra in O(n log n). None
            uses the one that is estimated to be faster (:func:`cheapest`). Exported graphs (``torch.export``, ONNX,
            TorchScript) always have the direct form.

    Returns:
        (N, O, H, W) in the input's dtype and memory format.

    Raises:
        ValueError: The shapes do not match, or there is no such method.
    """
    if method is not None and method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)} or None, got '{method}'")
    axis = _axis(input, weight, bias)
    dtype = compute_dtype(input.dtype)
    x, w, b = input.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype)
    if exporting() or not x.numel():  # an FFT of an empty tensor is an error
        method = 'direct'
    run = _fft if (method or cheapest(x, w, axis)) == 'fft' else _direct
    with given_dtypes(input.device):
        out = run(x, w, b, axis, x.shape[1] // w.shape[1])
    return out.to(input.dtype).contiguous(
        memory_format=torch.channels_last if is_channels_last(input) else torch.contiguous_format)
