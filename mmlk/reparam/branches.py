"""The base class of blocks that can be merged, and the block of RepLKNet."""
from typing import Callable, List, Optional

from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d

from .algebra import KernelBias, centred_sum, fold_bn

NormLayer = Callable[[int], nn.Module]


class MergeableBranches(nn.Module):
    """Base class of blocks whose parallel branches can be merged into one convolution.

    A subclass implements :attr:`merged`, :meth:`norms` and :meth:`merge_branches`.
    """

    @property
    def merged(self) -> bool:
        """Whether the branches have been merged."""
        raise NotImplementedError

    def norms(self) -> List[nn.Module]:
        """Returns the norm layers that merging folds into kernels. The list is empty after merging."""
        raise NotImplementedError

    def merge_branches(self) -> None:
        """Replaces the branches with one convolution, in-place. Called once, and only if all norms are foldable."""
        raise NotImplementedError

    def densify(self) -> None:
        """Makes one convolution of a merged block that still has several, in-place. May be called more than once.

        Only :class:`mmlk.reparam.stripes.StripedLargeKernel` has several convolutions after merging.
        """


def biased(folded: KernelBias, like: nn.Conv2d) -> DepthwiseConv2d:
    """Returns a depthwise convolution with the given kernel and bias.

    Its dtype, its device and ``requires_grad`` are those of ``like.weight``.
    """
    kernel, bias = folded
    conv = DepthwiseConv2d(len(kernel), tuple(kernel.shape[-2:]), bias=True).to(like.weight)
    conv.weight.data.copy_(kernel)
    conv.bias.data.copy_(bias)
    return conv.requires_grad_(like.weight.requires_grad)


class ConvNorm(nn.Sequential):
    """A convolution, a norm and an optional activation. The children have the official names: conv, bn, nonlinear."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, activation: Optional[nn.Module] = None):
        super().__init__()
        self.add_module('conv', conv)
        self.add_module('bn', norm)
        if activation is not None:
            self.add_module('nonlinear', activation)


class ReparamLargeKernel(MergeableBranches):
    """A large depthwise convolution and a parallel small one, each with a norm; RepLKNet, section 3, guideline 3.

    The state dict keys are the official ones: ``lkb_origin.{conv,bn}`` and ``small_conv.{conv,bn}`` before merging,
    ``lkb_reparam`` after it.

    Args:
        channels: Number of input and output channels.
        kernel_size: Side of the large kernel, odd.
        small_kernel: Side of the small kernel, odd and not larger than ``kernel_size``; None for no small branch.
        norm_layer: A function that takes a number of channels and returns a norm layer.
        merged: If True, builds the merged form.

    Shape:
        Input and output: (N, C, H, W).
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
