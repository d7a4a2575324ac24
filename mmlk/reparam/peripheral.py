"""A large depthwise convolution whose outer weights stand for whole blocks of taps; PeLK, arXiv:2403.07589."""
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d, depthwise_conv2d

from .algebra import KernelBias, centred_sum, fold_bn
from .branches import ConvNorm, MergeableBranches, NormLayer, biased


def sharing_grid(kernel_size: int, central_kernel: int) -> Tuple[int, ...]:
    """How many taps along an axis share a weight, from one end of the kernel to the other; equation 2, m = 2.

    The ``central_kernel`` taps in the middle share none; away from them it is 2, 4, 8, ... of them. The paper does not
    say what becomes of taps that these powers leave over. Here they are the outermost share where they are no fewer
    than the share before, and join it otherwise, so that shares never shrink outwards. That gives every grid that the
    paper prints.

    Args:
        kernel_size: Taps along the axis, odd.
        central_kernel: Taps with weights of their own, odd; all of them where it is the larger one.

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
    """The dense kernel in which each weight stands for a block of taps; equation 1.

    Args:
        weight: (C, 1, n, n), n the length of the grid.
        grid: Sides of the blocks, along both axes.

    Returns:
        (C, 1, k, k), k the sum of the grid, differentiable: made of slices, so that its gradient needs no scattered
        additions, whose order on a GPU is not fixed.
    """
    tall = torch.cat([row.expand(-1, -1, share, -1) for row, share in zip(weight.split(1, 2), grid)], 2)
    return torch.cat([column.expand(-1, -1, -1, share) for column, share in zip(tall.split(1, 3), grid)], 3)


class PeripheralLargeKernel(MergeableBranches):
    """A large depthwise convolution of shared weights and, in training, a small one beside it; sections 4.1 and 4.2.

    A position embedding of the kernel's size is added to what the kernel sees, ``sum_ij w(i, j) (x(i, j) + h(i, j))``
    (equation 3): also to the zeros around the map, of which the equation makes no exception. So all that it adds is
    ``sum_ij w(i, j) h(i, j)``, the same everywhere, a bias of each channel. No norm follows the kernel, for BatchNorm
    would take the bias away again and the embedding would not learn.

    All kernels of a stage have one embedding: :func:`share_embedding`.

    There is no official code. Keys: ``weight``, ``position_embedding`` in the first block of those that share it, and
    ``small_conv.{conv,bn}``; merged ``lkb_reparam``, as :class:`ReparamLargeKernel`'s.

    Args:
        channels: Channels of the map.
        kernel_size: k, the side of the dense kernel, odd.
        central_kernel: Side of its centre, in which no weights are shared, odd.
        small_kernel: Side of the small kernel, odd and no larger than k; None for a single branch.
        norm_layer: Builds a norm for a number of channels, that of the small branch.
        merged: Build the single convolution.

    Shape:
        (N, C, H, W) to the same. ``weight`` is (C, 1, n, n), n the length of :func:`sharing_grid`;
        ``position_embedding`` is (1, k, k), of one channel as a depthwise kernel has.

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
        self._sharing = [self]  # all that share the embedding, its owner first; a list registers no module

    @property
    def merged(self) -> bool:
        return 'lkb_reparam' in self._modules

    def norms(self) -> List[nn.Module]:
        return [self.small_conv.bn] if 'small_conv' in self._modules else []

    def _dense(self, weight: Tensor, embedding: Tensor) -> KernelBias:
        kernel = expand_shared(weight, self.grid)
        return kernel, (kernel * embedding).sum((1, 2, 3))

    def merge_branches(self) -> None:
        """Merge all blocks that share the embedding: without it none could."""
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
    """Let unmerged blocks of one kernel size use the position embedding of the first of them, which keeps it."""
    blocks = list(blocks)
    for block in blocks:
        block._sharing = blocks
    for block in blocks[1:]:
        del block.position_embedding
