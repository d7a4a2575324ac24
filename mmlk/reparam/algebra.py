"""The algebra of linear branches: functions from (kernel, bias) to (kernel, bias), computed in float64."""
from typing import Sequence, Tuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

KernelBias = Tuple[Tensor, Tensor]


def foldable(norm: nn.Module) -> bool:
    """Whether in eval mode this norm is a fixed affine map of each channel."""
    return isinstance(norm, _BatchNorm) and norm.track_running_stats and norm.running_mean is not None


def _affine(bn: _BatchNorm) -> Tuple[Tensor, Tensor]:
    """Scale and shift of ``bn`` in eval mode, (C,) and float64 both."""
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.double()
    shift = -bn.running_mean.double() * scale
    if bn.bias is not None:
        shift = shift + bn.bias.double()
    return scale, shift


def fold_bn(conv: nn.Conv2d, bn: _BatchNorm) -> KernelBias:
    """The convolution that equals ``bn(conv(x))`` in eval mode.

    Returns:
        kernel, shaped as ``conv.weight``, and bias (C,), both float64.
    """
    scale, bias = _affine(bn)
    if conv.bias is not None:
        bias = bias + conv.bias.double() * scale
    return conv.weight.double() * scale.reshape(-1, 1, 1, 1), bias


def fold_bn_before(bn: _BatchNorm, conv: nn.Conv2d) -> KernelBias:
    """The convolution that equals ``conv(bn(x))`` in eval mode, where ``conv`` pads nothing.

    Returns:
        kernel, shaped as ``conv.weight``, and bias (O,), both float64.
    """
    scale, shift = (values.reshape(conv.groups, 1, -1, 1, 1) for values in _affine(bn))
    kernel = conv.weight.double().unflatten(0, (conv.groups, -1))
    bias = (kernel * shift).sum((2, 3, 4)).flatten()
    if conv.bias is not None:
        bias = bias + conv.bias.double()
    return (kernel * scale).flatten(0, 1), bias


def fold_identity(bn: _BatchNorm, groups: int = 1) -> KernelBias:
    """The 1x1 convolution in ``groups`` groups that equals ``bn(x)`` in eval mode.

    Returns:
        kernel (C, C / groups, 1, 1) and bias (C,), both float64.
    """
    scale, bias = _affine(bn)
    kernel = nn.init.dirac_(scale.new_empty(len(scale), len(scale) // groups, 1, 1), groups)
    return kernel * scale.reshape(-1, 1, 1, 1), bias


def pad_kernel(kernel: Tensor, size: Tuple[int, int]) -> Tensor:
    """The kernel in the middle of a larger odd one, zeros around it: the same map under "same" padding.

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
    """The linear layer that equals ``bn(linear(x))`` in eval mode, the channels of ``bn`` being its outputs.

    Returns:
        weight, shaped as ``linear.weight``, and bias (C,), both float64.
    """
    scale, bias = _affine(bn)
    if linear.bias is not None:
        bias = bias + linear.bias.double() * scale
    return linear.weight.double() * scale[:, None], bias


def dilate_kernel(kernel: Tensor, dilation: int) -> Tensor:
    """The dense kernel, zeros between the taps, that without dilation is the same map as ``kernel`` with it.

    Returns:
        (..., dilation * (kh - 1) + 1, dilation * (kw - 1) + 1), differentiable.
    """
    kh, kw = (dilation * (k - 1) + 1 for k in kernel.shape[-2:])
    dense = kernel.new_zeros(*kernel.shape[:-2], kh, kw)
    dense[..., ::dilation, ::dilation] = kernel
    return dense


def centred_sum(folded: Sequence[KernelBias], size: Tuple[int, int]) -> KernelBias:
    """The convolution with a kernel of ``size`` that equals the sum of convolutions with odd, smaller ones.

    Raises:
        ValueError: A size is even, or smaller than one of the kernels.
    """
    kernels, biases = zip(*folded)
    return sum(pad_kernel(kernel, size) for kernel in kernels), sum(biases)
