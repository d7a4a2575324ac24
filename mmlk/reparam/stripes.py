"""The block of SLaK (arXiv:2207.03620): a large kernel as the sum of a K x k and a k x K kernel."""
from typing import List

from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d

from .algebra import centred_sum, fold_bn
from .branches import ConvNorm, MergeableBranches, NormLayer, biased


class StripedLargeKernel(MergeableBranches):
    """The sum of depthwise convolutions with a K x k, a k x K and, if k < K, a k x k kernel, each with a norm.

    The state dict keys are the official ones: ``LoRA1`` (K x k), ``LoRA2`` (k x K) and ``small_conv``, each with
    ``conv`` and ``bn``. "LoRA" stands for low rank, although each is a full kernel. The official code does not merge
    them. Here ``LoRA1`` and ``small_conv`` become ``LoRA1_reparam`` and ``LoRA2`` becomes ``LoRA2_reparam``, each with
    a bias. :meth:`densify` makes these two the dense K x K convolution ``lkb_reparam``.

    Args:
        channels: Number of input and output channels.
        kernel_size: K, odd.
        small_kernel: k, odd and not larger than K.
        norm_layer: A function that takes a number of channels and returns a norm layer.
        merged: If True, builds the merged form, which has two convolutions.

    Shape:
        Input and output: (N, C, H, W).
    """

    def __init__(self, channels: int, kernel_size: int, small_kernel: int, norm_layer: NormLayer,
                 merged: bool = False):
        super().__init__()
        tall, wide = (kernel_size, small_kernel), (small_kernel, kernel_size)
        if merged:
            self.LoRA1_reparam = DepthwiseConv2d(channels, tall, bias=True)
            self.LoRA2_reparam = DepthwiseConv2d(channels, wide, bias=True)
            return
        self.LoRA1 = ConvNorm(DepthwiseConv2d(channels, tall, bias=False), norm_layer(channels))
        self.LoRA2 = ConvNorm(DepthwiseConv2d(channels, wide, bias=False), norm_layer(channels))
        if small_kernel < kernel_size:
            self.small_conv = ConvNorm(DepthwiseConv2d(channels, small_kernel, bias=False), norm_layer(channels))

    @property
    def merged(self) -> bool:
        return 'LoRA1' not in self._modules

    def norms(self) -> List[nn.Module]:
        return [branch.bn for branch in self.children() if isinstance(branch, ConvNorm)]

    def merge_branches(self) -> None:
        tall, wide, *small = (fold_bn(branch.conv, branch.bn) for branch in self.children())
        like = self.LoRA1.conv
        del self.LoRA1, self.LoRA2
        if small:
            del self.small_conv
        self.LoRA1_reparam = biased(centred_sum([tall, *small], like.kernel_size), like)
        self.LoRA2_reparam = biased(wide, like)

    def densify(self) -> None:
        if 'lkb_reparam' in self._modules:
            return
        like, side = self.LoRA1_reparam, max(self.LoRA1_reparam.kernel_size)
        folded = [(stripe.weight.double(), stripe.bias.double()) for stripe in self.children()]
        del self.LoRA1_reparam, self.LoRA2_reparam
        self.lkb_reparam = biased(centred_sum(folded, (side, side)), like)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.children()
        out = first(x)
        for branch in others:
            out = out + branch(x)
        return out
