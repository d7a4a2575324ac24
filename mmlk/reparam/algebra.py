"""Functions that compute the kernel and the bias of an equivalent convolution. All of them compute in float64."""
from typing import Sequence, Tuple, Union

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

KernelBias = Tuple[Tensor, Tensor]


def foldable(norm: nn.Module) -> bool:
    """Returns whether the norm, in eval mode, only scales and shifts each channel by constants."""
    return isinstance(norm, _BatchNorm) and norm.track_running_stats and norm.running_mean is not None


def _affine(bn: _BatchNorm) -> Tuple[Tensor, Tensor]:
    """Returns the scale and the shift that ``bn`` applies in eval mode, both (C,), float64."""
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.double()
    shift = -bn.running_mean.double() * scale
    if bn.bias is not None:
        shift = shift + bn.bias.double()
    return scale, shift


def _folded(layer: Union[nn.Conv2d, nn.Linear], bn: _BatchNorm) -> KernelBias:
    """Returns weight and bias, both float64, of the layer that is equal to ``bn(layer(x))`` in eval mode."""
    scale, bias = _affine(bn)
    if layer.bias is not None:
        bias = bias + layer.bias.double() * scale
    return layer.weight.double() * scale.reshape(-1, *(1, ) * (layer.weight.dim() - 1)), bias


def fold_bn(conv: nn.Conv2d, bn: _BatchNorm) -> KernelBias:
    """Returns the convolution that is equal to ``bn(conv(x))`` in eval mode.

    Returns:
        The kernel, with the shape of ``conv.weight``, and the bias, (C,); both float64.
    """
    return _folded(conv, bn)


def fold_bn_before(bn: _BatchNorm, conv: nn.Conv2d) -> KernelBias:
    """Returns the convolution that is equal to ``conv(bn(x))`` in eval mode. ``conv`` must have no padding.

    Returns:
        The kernel, with the shape of ``conv.weight``, and the bias, (out_channels,); both float64.
    """
    scale, shift = (values.reshape(conv.groups, 1, -1, 1, 1) for values in _affine(bn))
    kernel = conv.weight.double().unflatten(0, (conv.groups, -1))
    bias = (kernel * shift).sum((2, 3, 4)).flatten()
    if conv.bias is not None:
        bias = bias + conv.bias.double()
    return (kernel * scale).flatten(0, 1), bias


def fold_identity(bn: _BatchNorm, groups: int = 1) -> KernelBias:
    """Returns the 1x1 convolution with ``groups`` groups that is equal to ``bn(x)`` in eval mode.

    Returns:
        The kernel, (C, C / groups, 1, 1), and the bias, (C,); both float64.
    """
    scale, bias = _affine(bn)
    kernel = nn.init.dirac_(scale.new_empty(len(scale), len(scale) // groups, 1, 1), groups)
    return kernel * scale.reshape(-1, 1, 1, 1), bias


def pad_kernel(kernel: Tensor, size: Tuple[int, int]) -> Tensor:
    """Pads the kernel with zeros on all sides to ``size``. A convolution with "same" padding gives the same output.

    Args:
        kernel: (..., kh, kw), both odd.
        size: Height and width of the result, both odd.

    Raises:
        ValueError: A size is even, or smaller than the kernel.
    """
    kh, kw = kernel.shape[-2:]
    if any(big < small or big % 2 == 0 or small % 2 == 0 for big, small in zip(size, (kh, kw))):
        raise ValueError(f'cannot centre a {kh}x{kw} kernel in {size[0]}x{size[1]}: '
                         'both must be odd, the second larger')
    dh, dw = (size[0] - kh) // 2, (size[1] - kw) // 2
    return F.pad(kernel, (dw, dw, dh, dh))


def fold_linear(linear: nn.Linear, bn: _BatchNorm) -> KernelBias:
    """Returns the linear layer that is equal to ``bn(linear(x))`` in eval mode.

    Returns:
        The weight, with the shape of ``linear.weight``, and the bias, (C,); both float64.
    """
    return _folded(linear, bn)


def dilate_kernel(kernel: Tensor, dilation: int) -> Tensor:
    """Inserts zeros between the taps: the result without dilation gives the same output as ``kernel`` with dilation.

    Returns:
        (..., dilation * (kh - 1) + 1, dilation * (kw - 1) + 1). The operation is differentiable.
    """
    kh, kw = (dilation * (k - 1) + 1 for k in kernel.shape[-2:])
    dense = kernel.new_zeros(*kernel.shape[:-2], kh, kw)
    dense[..., ::dilation, ::dilation] = kernel
    return dense


def centred_sum(folded: Sequence[KernelBias], size: Tuple[int, int]) -> KernelBias:
    """Returns the convolution that is equal to the sum of several, each padded to ``size`` by :func:`pad_kernel`.

    Raises:
        ValueError: A size is even, or smaller than one of the kernels.
    """
    kernels, biases = zip(*folded)
    return sum(pad_kernel(kernel, size) for kernel in kernels), sum(biases)
