"""A large depthwise convolution as the sum of a tall and a wide stripe; SLaK, arXiv:2207.03620."""
from typing import List

from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d

from .algebra import centred_sum, fold_bn
from .branches import ConvNorm, MergeableBranches, NormLayer, biased


class StripedLargeKernel(MergeableBranches):
    """Depthwise convolutions with a K x k, a k x K and, in training and where k < K, a k x k kernel, summed.

    "LoRA" in the official keys stands for low rank, which a sum of stripes is not: each is a full kernel.

    Keys, as the official ones: ``LoRA1`` (tall), ``LoRA2`` (wide) and ``small_conv``, each ``.{conv,bn}``. The official
    code merges none of them; here they merge to ``LoRA1_reparam``, which takes the small kernel in, and
    ``LoRA2_reparam``, each with a bias, and these, when asked, to the dense K x K ``lkb_reparam``.

    Args:
        channels: Channels of the map.
        kernel_size: K, odd.
        small_kernel: k, odd and no larger.
        norm_layer: Builds a norm for a number of channels.
        merged: Build the two biased stripes.

    Shape:
        (N, C, H, W) to the same.
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
