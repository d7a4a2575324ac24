"""The road from ResNet-50 to ConvNeXt-T: figure 2 of A ConvNet for the 2020s, Liu et al., CVPR 2022, arXiv:2201.03545.

No code was published of the networks between the two. They are written from section 2 of the paper, and have the
multiply-adds of its tables 10 and 11. ResNet: He et al., CVPR 2016, arXiv:1512.03385, with the stride in the 3x3
convolutions.
"""
from typing import Any, Dict, List, Sequence

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mmlk.layers import ChannelNorm
from mmlk.ops import DepthwiseConv2d
from mmlk.registry import MODELS
from mmlk.reparam.branches import NormLayer

from .base import Arch, check_kernels, check_not_negative, check_per_stage, check_positive, resolve_arch
from .convnext import ConvNeXt, arch_of

#: What changes on the road, in its order. A network with one change has all those before it.
STEPS = ('resnet', 'patchify', 'depthwise', 'inverted', 'moved-up', 'gelu', 'fewer-activations', 'fewer-norms',
         'layer-norm', 'separate-downsampling')


def _arch(step: str, width: int = 96, kernel_size: int = 7, depths: Sequence[int] = (3, 3, 9, 3),
          layer_scale_init_value: float = 0) -> Dict[str, Any]:
    return arch_of(depths, width, step=step, kernel_size=kernel_size, layer_scale_init_value=layer_scale_init_value)


# The rows of table 10 of the paper; after 'kernel-11' the kernels are 7x7 again.
ARCHS = {
    'resnet50': _arch('resnet', 64, 3, (3, 4, 6, 3)),
    'stage-ratio': _arch('resnet', 64, 3),
    'patchify': _arch('patchify', 64, 3),
    'depthwise': _arch('depthwise', 64, 3),
    'width-96': _arch('depthwise', 96, 3),
    'inverted': _arch('inverted', 96, 3),
    'moved-up': _arch('moved-up', 96, 3),
    **{f'kernel-{size}': _arch('moved-up', 96, size) for size in (5, 7, 9, 11)},
    **{step: _arch(step) for step in STEPS[5:-1]},
    STEPS[-1]: _arch(STEPS[-1], layer_scale_init_value=1e-6),
}

_DEFAULTS = dict(kernel_size=3, layer_scale_init_value=0)
_REQUIRED = ('depths', 'dims', 'step')
_EXPANSION = 4


def _reached(step: str, change: str) -> bool:
    """Returns whether the network at ``step`` has a change."""
    return STEPS.index(step) >= STEPS.index(change)


def _conv(in_channels: int, channels: int, kernel_size: int, stride: int, groups: int, bias: bool) -> nn.Conv2d:
    if groups == in_channels == channels and stride == 1:
        return DepthwiseConv2d(channels, kernel_size, bias=bias)
    return nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=bias)


class RoadmapBlock(nn.Module):
    """The block between ResNet's bottleneck and ConvNeXt's block; figure 3 of the paper.

    It has three convolutions, ``conv1`` to ``conv3``, and a shortcut. A convolution without a norm after it has a bias.

    Args:
        step: One of ``STEPS`` but the last, whose block is that of :class:`ConvNeXt`.
        in_channels: Number of channels of the input.
        width: Number of hidden channels of a bottleneck, of which the output has four times as many; from 'inverted'
            on, number of channels of the output, of which the block has four times as many inside.
        kernel_size: Size of the one convolution that is not 1x1.
        stride: Stride of this convolution.
        drop_path: Drop rate of stochastic depth.
        layer_scale_init_value: Initial value of layer scale; 0 for no layer scale.
        norm_layer: A function that takes a number of channels and returns a norm layer.
    """

    def __init__(self, step: str, in_channels: int, width: int, kernel_size: int, stride: int, drop_path: float,
                 layer_scale_init_value: float, norm_layer: NormLayer):
        super().__init__()
        hidden, channels = width, _EXPANSION * width
        if _reached(step, 'inverted'):
            hidden, channels = channels, hidden
        moved_up, few_norms = _reached(step, 'moved-up'), _reached(step, 'fewer-norms')
        # (input, output, size, stride) of each convolution
        shapes = [(in_channels, hidden, 1, 1), (hidden, hidden, kernel_size, stride), (hidden, channels, 1, 1)]
        if moved_up:
            shapes = [(in_channels, in_channels, kernel_size, stride), (in_channels, hidden, 1, 1), shapes[2]]
        spatial = 0 if moved_up else 1
        self.has_norm = [not few_norms or i == spatial for i in range(3)]
        self.has_act = [not _reached(step, 'fewer-activations') or i == 1 for i in range(3)]
        for i, (before, after, size, step_size) in enumerate(shapes):
            groups = after if i == spatial and _reached(step, 'depthwise') else 1
            self.add_module(f'conv{i + 1}', _conv(before, after, size, step_size, groups, not self.has_norm[i]))
            if self.has_norm[i]:
                self.add_module(f'norm{i + 1}', norm_layer(after))
        self.act = nn.GELU() if _reached(step, 'gelu') else nn.ReLU(inplace=True)
        scaled = layer_scale_init_value > 0
        self.gamma = nn.Parameter(torch.full((channels, ), float(layer_scale_init_value))) if scaled else None
        self.downsample = None
        if stride > 1 or in_channels != channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                                            norm_layer(channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(3):
            out = self._modules[f'conv{i + 1}'](out)
            if self.has_norm[i]:
                out = self._modules[f'norm{i + 1}'](out)
            if self.has_act[i] and i < 2:
                out = self.act(out)
        if self.gamma is not None:
            out = self.gamma.reshape(-1, 1, 1) * out
        out = self.drop_path(out) + (x if self.downsample is None else self.downsample(x))
        return self.act(out) if self.has_act[2] else out


@MODELS.register_module()
class ConvNeXtRoadmap(ConvNeXt):
    """A network on the road from ResNet-50 to ConvNeXt-T, to measure what each change does.

    The first arch equals torchvision's ResNet-50, the last :class:`ConvNeXt` with ``arch='T'``, whose parameter names
    all of them have. Only the last has norms on the returned maps. Where the paper leaves a choice:

    - The patchify stem is a convolution alone until the last step, which adds a norm.
    - The norm that stays in a block with fewer norms is the one after the depthwise convolution; the shortcut with a
      1x1 convolution, in blocks that change the shape of the map, keeps its norm and has no activation.
    - Layer scale is only in the last arch.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``depths``, ``dims`` (both one per stage; maps have four times as many
            channels before 'inverted'), ``step`` (the last change that the network has, one of ``STEPS``) and
            optionally ``kernel_size`` (3) and ``layer_scale_init_value`` (0: no layer scale).
        norm_cfg: Norm layer config of all norms before 'layer-norm'. After that, all are LayerNorms.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of maps with the strides s = 4, 8, 16, 32. Their sides are
        ceil(H / s) and ceil(W / s) in ResNet, H // s and W // s in ConvNeXt. Between the two, the patchify stem crops
        what does not fill a patch of 4x4, and the stages round up.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    def _norm_of(self, arch: Dict[str, Any]) -> NormLayer:
        return ChannelNorm if _reached(arch['step'], 'layer-norm') else self.norm_layer

    @staticmethod
    def complete(arch: Arch) -> Dict[str, Any]:
        """Checks the arch and returns it with all default values, ``dims`` as ``widths``, and the maps' ``dims``."""
        full = resolve_arch(arch, ARCHS, _REQUIRED, _DEFAULTS, 'ConvNeXtRoadmap')
        if not isinstance(full['step'], str) or full['step'] not in STEPS:
            raise ValueError(f"step must be one of {', '.join(STEPS)}, got {full['step']!r}")
        check_per_stage(full, 'depths', 'dims')
        check_positive(full, 'depths', 'dims')
        full['kernel_sizes'] = (full['kernel_size'], ) * len(full['depths'])
        check_kernels(dict(kernel_size=full['kernel_sizes']), 'kernel_size')
        check_not_negative(full, 'layer_scale_init_value')
        full['widths'] = tuple(full['dims'])
        full['dims'] = tuple(width * (1 if _reached(full['step'], 'inverted') else _EXPANSION)
                             for width in full['widths'])
        return full

    def opening(self, arch: Dict[str, Any], stage: int) -> Sequence[nn.Module]:
        if _reached(arch['step'], 'separate-downsampling'):
            return super().opening(arch, stage)
        if stage:
            return []  # the first block of the stage has the stride
        width = arch['widths'][0]
        if _reached(arch['step'], 'patchify'):
            return [nn.Conv2d(self.in_channels, width, 4, stride=4)]
        return [nn.Conv2d(self.in_channels, width, 7, 2, 3, bias=False), self.norm_layer(width),
                nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]

    def output_norm(self, arch: Dict[str, Any], stage: int) -> nn.Module:
        if _reached(arch['step'], 'separate-downsampling'):
            return super().output_norm(arch, stage)
        return nn.Identity()

    def block(self, arch: Dict[str, Any], stage: int, index: int, drop_path: float, merged: bool) -> nn.Module:
        if _reached(arch['step'], 'separate-downsampling'):
            return super().block(dict(arch, small_kernel=None), stage, index, drop_path, merged)
        dims: List[int] = [arch['widths'][0], *arch['dims']]  # the stem's and the stages'
        in_channels = dims[stage] if index == 0 else dims[stage + 1]
        return RoadmapBlock(arch['step'], in_channels, arch['widths'][stage], arch['kernel_size'],
                            1 if index or not stage else 2, drop_path, arch['layer_scale_init_value'],
                            self._norm_of(arch))
