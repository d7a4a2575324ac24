"""Global circular convolution: the kernel is as long as the map and goes round it; ParC-Net, Zhang et al., ECCV 2022,
arXiv:2203.03952, and Fast-ParC, Yang et al., arXiv:2210.04020."""
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends.base import compute_dtype, given_dtypes
from .layout import exporting

METHODS = ('direct', 'fft')


class _Rates(NamedTuple):
    """What a device does in a second, for the estimates."""

    call: float  #: seconds that the FFT form takes at any size
    element: float  #: seconds per element of the map or the kernel that is transformed
    depthwise: float  #: multiply-adds per second of the direct form, one channel a group
    dense: float  #: the same with more channels a group, and of the product of spectra
    depthwise_w: float  #: ``depthwise`` along W where gradients are recorded
    channels_last: float  #: how often as fast the depthwise convolution is on such maps, and as slow the transforms


# The CPU's are fitted to measurements on one core. Of 126 cases (axes of 7 to 168, depthwise and dense, both memory
# formats, inference and training) the estimate takes the faster form in 106, and in the others one within 1.4 of it.
# oneDNN's weight gradient along W is what makes training there slow. More threads are taken to speed up both alike. The
# GPU's are like those of the two-dimensional backends, and not measured.
_RATES = {
    'cpu': _Rates(6e-5, 1.4e-9, 9e9, 5e10, 2.5e9, 1.6),
    'cuda': _Rates(5e-5, 2.5e-11, 2e12, 1e13, 2e12, 1.0),
}
if not torch.backends.mkl.is_available():
    del _RATES['cpu']


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of (N, C, H, W) lie side by side, as in half the channels of a channels_last map too."""
    return x.stride(1) == 1 and not x.is_contiguous()


def _axis(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> int:
    """The dimension along which the kernel lies; checks the shapes."""
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
    length = x.shape[axis]
    return F.conv2d(torch.cat((x, x.narrow(axis, 0, length - 1)), axis), weight, bias, groups=groups)


def _fft(x: Tensor, weight: Tensor, bias: Optional[Tensor], axis: int, groups: int) -> Tensor:
    (batch, channels, *_), outputs = x.shape, weight.shape[0]
    spectrum = torch.fft.rfft(x, dim=axis)
    taps = torch.fft.rfft(weight, dim=axis).conj()  # conjugate: the kernel is not flipped
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
    """The form that is estimated to take less time.

    On a CPU that is the FFT's for axes from about 30 elements on, 70 on channels_last maps, 10 along W in training; for
    dense kernels from about 15 on.
    """
    kind = x.device.type
    if kind not in _RATES:
        return 'direct'
    rates, length = _RATES[kind], x.shape[axis]
    pixels, outputs = x.numel() // x.shape[1], weight.shape[0]
    products = pixels * weight[..., :1, :1].numel()  # of pixels with one tap
    learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    slower = rates.channels_last if is_channels_last(x) else 1.0
    if weight.shape[1] > 1:
        rate = rates.dense
    elif axis == 3 and learning:
        rate = rates.depthwise_w
    else:
        rate = rates.depthwise * slower
    transformed = x.numel() + pixels * outputs + weight.numel()
    # a complex product is four real ones, and half of the spectrum is kept
    fft = rates.call + rates.element * slower * transformed + 4 * products * (length // 2 + 1) / length / rates.dense
    return 'fft' if fft < products * length / rate else 'direct'


def circular_conv(input: Tensor, weight: Tensor, bias: Optional[Tensor] = None, *,
                  method: Optional[str] = None) -> Tensor:
    """Convolution along H or W with a kernel as long as the map, which goes on at the other end.

    ``out[..., i, :] = bias + sum over k of weight[..., k, 0] * input[..., (i + k) % H, :]``, or the same along W: which
    of the two, the kernel's shape says. Half precision is computed in float32, under autocast too.

    Args:
        input: (N, C, H, W), any H and W.
        weight: (O, C / groups, H, 1) or (O, C / groups, 1, W); (C, 1, H, 1) is depthwise.
        bias: (O,) or None.
        method: ``'direct'``, O(n^2): the map beside itself, and one plain convolution. ``'fft'``, O(n log n): a product
            of spectra. None takes the one that is estimated to be faster (:func:`cheapest`). Exported graphs
            (``torch.export``, ONNX, TorchScript) hold the direct form either way.

    Returns:
        (N, O, H, W) in the input's dtype and memory format.

    Raises:
        ValueError: Shapes do not fit, or there is no such method.
    """
    if method is not None and method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)} or None, got '{method}'")
    axis = _axis(input, weight, bias)
    dtype = compute_dtype(input.dtype)
    x, w, b = input.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype)
    if exporting() or not x.numel():  # there is no FFT of nothing
        method = 'direct'
    run = _fft if (method or cheapest(x, w, axis)) == 'fft' else _direct
    with given_dtypes(input.device):
        out = run(x, w, b, axis, x.shape[1] // w.shape[1])
    return out.to(input.dtype).contiguous(
        memory_format=torch.channels_last if is_channels_last(input) else torch.contiguous_format)
