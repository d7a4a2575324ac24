"""The block of UniRepLKNet: a large depthwise convolution and several parallel dilated small ones."""
from typing import Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d, depthwise_conv2d
from mmlk.ops.layout import exporting

from .algebra import centred_sum, dilate_kernel, fold_bn
from .branches import MergeableBranches, NormLayer, biased

#: The parallel branches for each large kernel, (kernel size, dilation) each, as in the official code.
DILATED_BRANCHES: Dict[int, Tuple[Tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


class DilatedDepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with dilation, stride 1, "same" padding and no bias.

    Args:
        channels: Number of input and output channels.
        kernel_size: Side of the kernel, odd.
        dilation: Spacing between the kernel's taps.

    Shape:
        Input and output: (N, C, H, W).
    """

    def __init__(self, channels: int, kernel_size: int, dilation: int):
        super().__init__(channels, channels, kernel_size, padding=dilation * (kernel_size // 2), dilation=dilation,
                         groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # PyTorch's backward pass of dilated depthwise convolutions is slow on a CPU. With a dense kernel that includes
        # the zeros, forward and backward together take 0.14 to 0.72 of the time. Forward alone would take 2.3 to 8
        # times as long, so inference keeps the dilated form.
        needs_gradients = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if needs_gradients and x.device.type == 'cpu' and not exporting():
            return depthwise_conv2d(x, dilate_kernel(self.weight, self.dilation[0]))
        return super().forward(x)


class DilatedReparamBlock(MergeableBranches):
    """A large depthwise convolution and parallel dilated small ones, each with a norm; UniRepLKNet, guideline 2.

    The state dict keys are the official ones: ``lk_origin``, ``origin_bn``, ``dil_conv_k{kernel}_{dilation}`` and
    ``dil_bn_k{kernel}_{dilation}`` before merging, ``lk_origin`` with a bias after it.

    Args:
        channels: Number of input and output channels.
        kernel_size: Side of the large kernel, a key of ``DILATED_BRANCHES``.
        norm_layer: A function that takes a number of channels and returns a norm layer.
        merged: If True, builds the merged form.
        table: The parallel branches for each large kernel, like ``DILATED_BRANCHES``, which is the default.

    Shape:
        Input and output: (N, C, H, W).

    Raises:
        ValueError: ``kernel_size`` is not a key of the table.
    """

    def __init__(self, channels: int, kernel_size: int, norm_layer: NormLayer, merged: bool = False,
                 table: Optional[Dict[int, Tuple[Tuple[int, int], ...]]] = None):
        super().__init__()
        table = DILATED_BRANCHES if table is None else table
        if kernel_size not in table:
            raise ValueError(f'a dilated re-parameterised block has a kernel of {list(table)}, got {kernel_size}')
        self.small = table[kernel_size]
        self.lk_origin = DepthwiseConv2d(channels, kernel_size, bias=merged)
        if merged:
            return
        self.origin_bn = norm_layer(channels)
        for kernel, dilation in self.small:
            conv = (DepthwiseConv2d(channels, kernel, bias=False) if dilation == 1
                    else DilatedDepthwiseConv2d(channels, kernel, dilation))
            self.add_module(f'dil_conv_k{kernel}_{dilation}', conv)
            self.add_module(f'dil_bn_k{kernel}_{dilation}', norm_layer(channels))

    @property
    def merged(self) -> bool:
        return 'origin_bn' not in self._modules

    def _dilated(self) -> Iterator[Tuple[nn.Conv2d, nn.Module]]:
        """Yields the convolution and the norm of each small branch."""
        for kernel, dilation in self.small:
            yield self._modules[f'dil_conv_k{kernel}_{dilation}'], self._modules[f'dil_bn_k{kernel}_{dilation}']

    def norms(self) -> List[nn.Module]:
        return [] if self.merged else [self.origin_bn, *(bn for _, bn in self._dilated())]

    def merge_branches(self) -> None:
        origin = self.lk_origin
        folded = [fold_bn(origin, self.origin_bn)]
        for conv, bn in self._dilated():
            kernel, bias = fold_bn(conv, bn)
            folded.append((dilate_kernel(kernel, conv.dilation[0]), bias))
        for name in list(self._modules):
            delattr(self, name)
        self.lk_origin = biased(centred_sum(folded, origin.kernel_size), origin)

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return self.lk_origin(x)
        out = self.origin_bn(self.lk_origin(x))
        for conv, bn in self._dilated():
            out = out + bn(conv(x))
        return out
