"""Blocks of parallel linear branches that one convolution can replace."""
from typing import Callable, List, Optional

from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d

from .algebra import KernelBias, centred_sum, fold_bn

NormLayer = Callable[[int], nn.Module]


class MergeableBranches(nn.Module):
    """A block that can become a single convolution.

    A subclass answers ``merged``, lists the norms that merging would fold, and rewrites itself in ``merge_branches``.
    """

    @property
    def merged(self) -> bool:
        raise NotImplementedError

    def norms(self) -> List[nn.Module]:
        """The norm layers that merging folds; none once merged."""
        raise NotImplementedError

    def merge_branches(self) -> None:
        """Replace the branches by one convolution, in place. Called once, on a block whose norms are foldable."""
        raise NotImplementedError

    def densify(self) -> None:
        """Leave one convolution where merging leaves several, in place. Called on a merged block, any number of times.

        Nothing to do for all but :class:`mmlk.reparam.stripes.StripedLargeKernel`.
        """


def biased(folded: KernelBias, like: nn.Conv2d) -> DepthwiseConv2d:
    """A convolution of this kernel and bias, with the dtype and device of another, frozen where that one is."""
    kernel, bias = folded
    conv = DepthwiseConv2d(len(kernel), tuple(kernel.shape[-2:]), bias=True).to(like.weight)
    conv.weight.data.copy_(kernel)
    conv.bias.data.copy_(bias)
    return conv.requires_grad_(like.weight.requires_grad)


class ConvNorm(nn.Sequential):
    """Children ``conv`` and ``bn``, and ``nonlinear`` when an activation is given: the official key names."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, activation: Optional[nn.Module] = None):
        super().__init__()
        self.add_module('conv', conv)
        self.add_module('bn', norm)
        if activation is not None:
            self.add_module('nonlinear', activation)


class ReparamLargeKernel(MergeableBranches):
    """A large depthwise convolution with, in training, a small one beside it; RepLKNet, section 3, guideline 3.

    Keys, as the official ones: ``lkb_origin.{conv,bn}`` and ``small_conv.{conv,bn}``, or merged ``lkb_reparam``.

    Args:
        channels: Channels of the map.
        kernel_size: The large kernel, odd.
        small_kernel: The small kernel, odd and no larger; None for a single branch.
        norm_layer: Builds a norm for a number of channels.
        merged: Build the single convolution.

    Shape:
        (N, C, H, W) to the same.
    """

    def __init__(self, channels: int, kernel_size: int, small_kernel: Optional[int], norm_layer: NormLayer,
                 merged: bool = False):
        super().__init__()
        if merged:
            self.lkb_reparam = DepthwiseConv2d(channels, kernel_size, bias=True)
            return
        self.lkb_origin = ConvNorm(DepthwiseConv2d(channels, kernel_size, bias=False), norm_layer(channels))
        if small_kernel is not None:
            self.small_conv = ConvNorm(DepthwiseConv2d(channels, small_kernel, bias=False), norm_layer(channels))

    @property
    def merged(self) -> bool:
        return 'lkb_reparam' in self._modules

    def _branches(self) -> List[ConvNorm]:
        return [self._modules[name] for name in ('lkb_origin', 'small_conv') if name in self._modules]

    def norms(self) -> List[nn.Module]:
        return [branch.bn for branch in self._branches()]

    def merge_branches(self) -> None:
        origin = self.lkb_origin.conv
        folded = [fold_bn(branch.conv, branch.bn) for branch in self._branches()]
        merged = biased(centred_sum(folded, origin.kernel_size), origin)
        del self.lkb_origin
        if 'small_conv' in self._modules:
            del self.small_conv
        self.lkb_reparam = merged

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return self.lkb_reparam(x)
        out = self.lkb_origin(x)
        return out + self.small_conv(x) if 'small_conv' in self._modules else out
