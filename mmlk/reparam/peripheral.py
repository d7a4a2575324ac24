"""The block of PeLK (arXiv:2403.07589): a large depthwise kernel whose outer taps share weights."""
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d, depthwise_conv2d

from .algebra import KernelBias, centred_sum, fold_bn
from .branches import ConvNorm, MergeableBranches, NormLayer, biased


def sharing_grid(kernel_size: int, central_kernel: int) -> Tuple[int, ...]:
    """Returns how many neighbouring taps share each weight along one axis; equation 2 with m = 2.

    The ``central_kernel`` taps in the middle have a weight each. Outwards from there, groups of 2, 4, 8, ... taps share
    one. The paper does not say what happens to taps that are left over at the end. Here they form the outermost group
    if they are at least as many as the group before, and are added to that group otherwise, so that groups never become
    smaller outwards. This reproduces every grid that the paper prints.

    Args:
        kernel_size: Number of taps along the axis, odd.
        central_kernel: Number of taps in the middle with a weight each, odd. If it is larger than ``kernel_size``, no
            weights are shared.

    Returns:
        The sizes of the groups, from one end of the kernel to the other. Their sum is ``kernel_size``.

    Raises:
        ValueError: A size is not odd and positive.
    """
    for size in (kernel_size, central_kernel):
        if size < 1 or size % 2 == 0:
            raise ValueError(f'kernels must be odd and positive, got {size}')
    central = min(kernel_size, central_kernel)
    left, share, outwards = (kernel_size - central) // 2, 2, []
    while left:
        outwards.append(share if left == share or left >= 2 * share else left)
        left -= outwards[-1]
        share *= 2
    return (*reversed(outwards), *[1] * central, *outwards)


def expand_shared(weight: Tensor, grid: Sequence[int]) -> Tensor:
    """Returns the dense kernel in which each weight is repeated over its group of taps; equation 1.

    The result is made of slices instead of an index operation: the gradient then needs no atomic additions, whose order
    on a GPU is not deterministic.

    Args:
        weight: (C, 1, n, n), where n is the length of ``grid``.
        grid: Sizes of the groups along both axes, see :func:`sharing_grid`.

    Returns:
        (C, 1, k, k), where k is the sum of ``grid``. The operation is differentiable.
    """
    tall = torch.cat([row.expand(-1, -1, share, -1) for row, share in zip(weight.split(1, 2), grid)], 2)
    return torch.cat([column.expand(-1, -1, -1, share) for column, share in zip(tall.split(1, 3), grid)], 3)


class PeripheralLargeKernel(MergeableBranches):
    """A large depthwise convolution with shared weights and a parallel small one; sections 4.1 and 4.2.

    A position embedding ``h`` of the kernel's size is added to the input of each window:
    ``sum_ij w(i, j) (x(i, j) + h(i, j))`` (equation 3). The equation makes no exception for the zero padding, so the
    embedding adds ``sum_ij w(i, j) h(i, j)`` at every position: a bias for each channel. There is no norm after the
    large kernel, because a BatchNorm would subtract this bias again and the embedding would get no gradient.

    All blocks of a stage use the same embedding, see :func:`share_embedding`.

    There is no official code. The state dict keys are ``weight``, ``position_embedding`` (in the first of the blocks
    that share it) and ``small_conv.{conv,bn}`` before merging, and ``lkb_reparam`` after it, as in
    :class:`ReparamLargeKernel`.

    Args:
        channels: Number of input and output channels.
        kernel_size: Side k of the dense kernel, odd.
        central_kernel: Side of the central part, in which no weights are shared, odd.
        small_kernel: Side of the small kernel, odd and not larger than ``kernel_size``; None for no small branch.
        norm_layer: A function that takes a number of channels and returns the norm layer of the small branch.
        merged: If True, builds the merged form.

    Shape:
        Input and output: (N, C, H, W). ``weight`` is (C, 1, n, n), where n is the length of :func:`sharing_grid`;
        ``position_embedding`` is (1, k, k).

    Raises:
        ValueError: A size is not odd and positive.
    """

    def __init__(self, channels: int, kernel_size: int, central_kernel: int, small_kernel: Optional[int],
                 norm_layer: NormLayer, merged: bool = False):
        super().__init__()
        self.grid = sharing_grid(kernel_size, central_kernel)
        if merged:
            self.lkb_reparam = DepthwiseConv2d(channels, kernel_size, bias=True)
            return
        self.weight = nn.Parameter(torch.empty(channels, 1, len(self.grid), len(self.grid)))
        self.position_embedding = nn.Parameter(torch.empty(1, kernel_size, kernel_size))
        for parameter in (self.weight, self.position_embedding):
            nn.init.trunc_normal_(parameter, std=0.02)
        if small_kernel is not None:
            self.small_conv = ConvNorm(DepthwiseConv2d(channels, small_kernel, bias=False), norm_layer(channels))
        self._sharing = [self]  # the blocks that share the embedding, its owner first; a list registers no submodule

    @property
    def merged(self) -> bool:
        return 'lkb_reparam' in self._modules

    def norms(self) -> List[nn.Module]:
        return [self.small_conv.bn] if 'small_conv' in self._modules else []

    def _dense(self, weight: Tensor, embedding: Tensor) -> KernelBias:
        kernel = expand_shared(weight, self.grid)
        return kernel, (kernel * embedding).sum((1, 2, 3))

    def merge_branches(self) -> None:
        """Merges all blocks that share the embedding, because none of them can be merged without it."""
        embedding = self._sharing[0].position_embedding
        for block in self._sharing:
            block._merge_with(embedding)

    def _merge_with(self, embedding: Tensor) -> None:
        folded = [self._dense(self.weight.double(), embedding.double())]
        if 'small_conv' in self._modules:
            folded.append(fold_bn(self.small_conv.conv, self.small_conv.bn))
        merged = biased(centred_sum(folded, (sum(self.grid), ) * 2), self)
        for name in ('_sharing', *self._parameters, *self._modules):
            delattr(self, name)
        self.lkb_reparam = merged

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return self.lkb_reparam(x)
        out = depthwise_conv2d(x, *self._dense(self.weight, self._sharing[0].position_embedding))
        return out + self.small_conv(x) if 'small_conv' in self._modules else out

    def extra_repr(self) -> str:
        return f'grid={self.grid}'


def share_embedding(blocks: Sequence[PeripheralLargeKernel]) -> None:
    """Makes all blocks use the position embedding of the first one.

    Args:
        blocks: Unmerged blocks with the same kernel size.
    """
    blocks = list(blocks)
    for block in blocks:
        block._sharing = blocks
    for block in blocks[1:]:
        del block.position_embedding
