"""ParC-Net: MobileViT with global circular convolutions and channel attention in place of its transformers.

ParC-Net, Zhang et al., ECCV 2022, arXiv:2203.03952. Official code: https://github.com/hkzhang91/ParC-Net (no licence:
only its parameter names are followed), where the network is called EdgeFormer.
"""
from math import gcd
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from timm.layers import DropPath, make_divisible
from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d
from mmlk.ops.circular import circular_conv
from mmlk.ops.parc import GlobalConv, fitted
from mmlk.registry import MODELS
from mmlk.reparam.branches import NormLayer

from .base import (Arch, BaseBackbone, check_flags, check_not_negative, check_positive, check_sequences, is_integer,
                   resolve_arch)


def _arch(out_channels: Sequence[int], cf_s_channels: Sequence[int], cf_blocks: Sequence[int],
          **other) -> Dict[str, Any]:
    return dict(out_channels=out_channels, cf_s_channels=cf_s_channels,
                cf_ffn_channels=tuple(2 * c for c in cf_s_channels), cf_blocks=cf_blocks, **other)


# S is from the paper; XS and H are only in the official code.
ARCHS = {
    'XS': _arch((32, 64, 96, 128, 160), (96, 128, 160), (2, 3, 2), fusion='add'),
    'S': _arch((32, 64, 96, 128, 160), (192, 256, 320), (2, 4, 3)),
    'H': _arch((96, 144, 216, 288, 432), (324, 432, 432), (3, 9, 3), conv_1=(48, 5)),
}

_DEFAULTS = dict(conv_1=(16, 3), num_blocks=(1, 3), expand_ratio=4, meta_kernel_size=(32, 16, 8), fusion='concat',
                 use_pe=True, ffn_dropout=0.0, dropout=0.1)
_REQUIRED = ('out_channels', 'cf_s_channels', 'cf_ffn_channels', 'cf_blocks')
_REDUCTION = 16  # ratio of channels to hidden channels of the channel attention


def _complete(arch: Arch) -> Dict[str, Any]:
    """Checks the arch and returns it as a dict with all default values."""
    full = resolve_arch(arch, ARCHS, _REQUIRED, _DEFAULTS, 'ParCNet')
    lengths = dict(out_channels=5, cf_s_channels=3, cf_ffn_channels=3, cf_blocks=3, conv_1=2, num_blocks=2,
                   meta_kernel_size=3)
    for key, length in lengths.items():
        check_sequences(full, key)
        if len(full[key]) != length:
            raise ValueError(f'{key} must have {length} entries, got {len(full[key])}')
    check_positive(full, *lengths)
    if full['conv_1'][1] % 2 == 0:
        raise ValueError(f"conv_1 is the stem's channels and kernel, which must be odd; got {full['conv_1'][1]}")
    for channels in full['cf_s_channels']:
        if channels % 2 or channels < _REDUCTION:
            raise ValueError(f'cf_s_channels must be even and at least {_REDUCTION}, got {channels}')
    if full['fusion'] not in ('add', 'concat'):
        raise ValueError(f"fusion must be add or concat, got {full['fusion']!r}")
    check_flags(full, 'use_pe')
    check_not_negative(full, 'ffn_dropout', 'dropout')
    for key in ('ffn_dropout', 'dropout'):
        if full[key] >= 1:
            raise ValueError(f'{key} must be in [0, 1), got {full[key]}')
    if not is_integer(full['expand_ratio']) or full['expand_ratio'] < 1:
        raise ValueError(f"expand_ratio must be a positive integer, got {full['expand_ratio']!r}")
    return full


class ConvLayer(nn.Module):
    """A convolution without bias, with optional norm and SiLU. Official state dict keys: ``block.{conv,norm}``."""

    def __init__(self, conv: nn.Conv2d, norm: Optional[nn.Module] = None, act: bool = False):
        super().__init__()
        self.block = nn.Sequential()
        self.block.add_module('conv', conv)
        if norm is not None:
            self.block.add_module('norm', norm)
        if act:
            self.block.add_module('act', nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def conv_layer(in_channels: int, out_channels: int, kernel_size: int, norm_layer: NormLayer, stride: int = 1,
               dilation: int = 1, groups: int = 1, act: bool = True) -> ConvLayer:
    """Returns a convolution with a norm and, if ``act``, SiLU. Its output is (ceil(H / stride), ceil(W / stride))."""
    if in_channels == out_channels == groups and kernel_size > 1 and stride == dilation == 1:
        conv = DepthwiseConv2d(in_channels, kernel_size, bias=False)
    else:
        padding = dilation * (kernel_size // 2)
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
    return ConvLayer(conv, norm_layer(out_channels), act)


class InvertedResidual(nn.Module):
    """The block of MobileNetV2 with SiLU. State dict keys: ``block.{exp_1x1,conv_3x3,red_1x1}``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int, expand_ratio: int,
                 norm_layer: NormLayer, drop_path: float = 0.0):
        super().__init__()
        hidden = make_divisible(in_channels * expand_ratio, 8)
        self.block = nn.Sequential()
        if expand_ratio != 1:
            self.block.add_module('exp_1x1', conv_layer(in_channels, hidden, 1, norm_layer))
        self.block.add_module('conv_3x3', conv_layer(hidden, hidden, 3, norm_layer, stride, dilation, hidden))
        self.block.add_module('red_1x1', conv_layer(hidden, out_channels, 1, norm_layer, act=False))
        self.shortcut = stride == 1 and in_channels == out_channels
        if self.shortcut:
            self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.block(x)) if self.shortcut else self.block(x)


class ChannelAttention(nn.Module):
    """Squeeze-and-excitation with norms: multiplies each channel by a gate, computed from the means over the map.

    Its norms get a single value for each image and channel. Training therefore needs at least two images per device, or
    ``norm_eval``. State dict key: ``fc``.
    """

    def __init__(self, channels: int, norm_layer: NormLayer):
        super().__init__()
        inner = channels // _REDUCTION
        self.fc = nn.Sequential(nn.Conv2d(channels, inner, 1, bias=False), norm_layer(inner), nn.Hardswish(),
                                nn.Conv2d(inner, channels, 1, bias=False), norm_layer(channels), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True))


class ParCMetaBlock(nn.Module):
    """The ParC block: on one half of the channels ParC along H, then W; on the other along W, then H; then an MLP.

    The state dict keys are the official ones: ``pre_Norm_{1,2}``, ``meta_kernel_{1,2}_{H,W}``,
    ``meta_pe_{1,2}_{H,W}``, ``ffn`` and ``ca``. The number is the position of the convolution, first or second.

    Args:
        channels: Number of channels of the map, even.
        hidden_channels: Number of hidden channels of the MLP.
        size: Native height and width of the map, for which the kernels are made.
        use_pe: Whether to add position embeddings, to the map and between the convolutions.
        norm_layer: A function that takes a number of channels and returns a norm layer.
        ffn_dropout: Dropout rate inside the MLP.
        dropout: Dropout rate after the MLP.
        drop_path: Drop rate of stochastic depth of both residuals.

    Shape:
        Input and output: (N, C, H, W), for any H and W.
    """

    def __init__(self, channels: int, hidden_channels: int, size: int, use_pe: bool, norm_layer: NormLayer,
                 ffn_dropout: float, dropout: float, drop_path: float):
        super().__init__()
        half = channels // 2
        self.pre_Norm_1, self.pre_Norm_2 = norm_layer(half), norm_layer(half)
        self.use_pe = use_pe
        for step in (1, 2):
            for axis in ('H', 'W'):
                kernel = GlobalConv(half, size, axis.lower()).weight
                self.register_parameter(f'meta_kernel_{step}_{axis}', kernel)
                if use_pe:
                    embedding = nn.Parameter(torch.randn(1, half, *kernel.shape[2:]))
                    self.register_parameter(f'meta_pe_{step}_{axis}', embedding)
        self.ffn = nn.Sequential(norm_layer(channels), nn.Conv2d(channels, hidden_channels, 1), nn.Hardswish(),
                                 nn.Dropout(ffn_dropout), nn.Conv2d(hidden_channels, channels, 1), nn.Dropout(dropout))
        self.ca = ChannelAttention(channels, norm_layer)
        self.drop_path = DropPath(drop_path)

    def _placed(self, x: Tensor, part: str) -> Tensor:
        if not self.use_pe:
            return x
        return x + fitted(getattr(self, f'meta_pe_{part}'), x, part[-1].lower()).to(x.dtype)

    def _convolved(self, x: Tensor, part: str) -> Tensor:
        return circular_conv(x, fitted(getattr(self, f'meta_kernel_{part}'), x, part[-1].lower()))

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        first = self._convolved(self.pre_Norm_1(self._placed(first, '1_H')), '1_H')
        second = self._convolved(self.pre_Norm_2(self._placed(second, '1_W')), '1_W')
        first = self._convolved(self._placed(first, '2_W'), '2_W')
        second = self._convolved(self._placed(second, '2_H'), '2_H')
        x = x + self.drop_path(torch.cat((first, second), dim=1))
        return x + self.drop_path(self.ca(self.ffn(x)))


class OuterFrame(nn.Module):
    """The block of MobileViT: local convolution, ParC blocks, and a fusion of their output with the input.

    The state dict keys are the official ones: ``dim_adaptive``, ``spatial_global_rep``, ``channel_adaptive``,
    ``local_global_fusion``.

    Args:
        channels: Number of channels of the map.
        inner_channels: Number of channels of the ParC blocks.
        blocks: The ParC blocks, followed by a norm.
        fusion: ``'concat'`` or ``'add'``.
        norm_layer: A function that takes a number of channels and returns a norm layer.

    Shape:
        Input and output: (N, C, H, W).
    """

    def __init__(self, channels: int, inner_channels: int, blocks: List[nn.Module], fusion: str,
                 norm_layer: NormLayer):
        super().__init__()
        groups = gcd(channels, inner_channels)
        self.dim_adaptive = nn.Sequential(
            conv_layer(channels, inner_channels, 3, norm_layer, groups=groups),
            ConvLayer(nn.Conv2d(inner_channels, inner_channels, 1, bias=False)))
        self.spatial_global_rep = nn.Sequential(*blocks)
        self.channel_adaptive = conv_layer(inner_channels, channels, 1, norm_layer, groups=groups)
        self.concat = fusion == 'concat'
        self.local_global_fusion = conv_layer((1 + self.concat) * channels, channels, 3, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        out = self.channel_adaptive(self.spatial_global_rep(self.dim_adaptive(x)))
        return self.local_global_fusion(torch.cat((out, x), dim=1) if self.concat else x + out)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode='fan_out')
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@MODELS.register_module()
class ParCNet(BaseBackbone):
    """ParC-Net as a feature extractor, without the last pointwise layer before the classifier.

    A stage is one official layer, from ``layer_2``, at stride 4, to ``layer_5``; ``layer_1`` belongs to the stem.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``out_channels`` (of the five layers) and, one for each of the last
            three layers, ``cf_s_channels`` and ``cf_ffn_channels`` (of their ParC blocks, and inside those) and
            ``cf_blocks`` (their number); optionally ``conv_1`` (channels and kernel of the first convolution),
            ``num_blocks`` (of the first two layers), ``expand_ratio``, ``meta_kernel_size`` (side of the maps that
            kernels and embeddings are made for), ``fusion`` (``'concat'`` or ``'add'``), ``use_pe`` (in the first ParC
            block of each layer), ``ffn_dropout`` and ``dropout``.
        output_stride: Stride of the last map, 8, 16 or 32; the official DeepLabv3 has 16.
        drop_path_rate: Drop rate (stochastic depth) of the last block that has a residual. It increases linearly from 0
            over those blocks. Not in the official code, which has ``dropout``.
        norm_cfg: Norm layer config. With SyncBN the norms of the ParC blocks, their channel attention's among them, and
            the one after each layer's last block are plain BatchNorm, as in the official code.
        norm_eval: As in :class:`BaseBackbone`; needed with one image on a device.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, out_channels[i + 1], ceil(H / s), ceil(W / s)), s = 4, 8,
        16, 32 with the default output stride. H and W may have any value.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    def __init__(self, arch: Arch = 'S', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 output_stride: int = 32, drop_path_rate: float = 0.0, frozen_stages: int = -1,
                 norm_cfg: dict = dict(type='BN'), norm_eval: bool = False, with_cp: bool = False,
                 merged: bool = False, init_cfg: Optional[dict] = None):
        full = _complete(arch)
        channels, num_blocks = full['out_channels'], full['num_blocks']
        super().__init__(channels[1:], in_channels=in_channels, out_indices=out_indices, drop_path_rate=drop_path_rate,
                         frozen_stages=frozen_stages, norm_cfg=norm_cfg, norm_eval=norm_eval, with_cp=with_cp,
                         merged=merged, init_cfg=init_cfg)
        if not is_integer(output_stride) or output_stride not in (8, 16, 32):
            raise ValueError(f'ParCNet: output_stride must be 8, 16 or 32, got {output_stride!r}')
        norm_layer, expand = self.norm_layer, full['expand_ratio']
        parc_norm = nn.BatchNorm2d if norm_cfg.get('type') == 'SyncBN' else norm_layer
        width, kernel = full['conv_1']
        self.conv_1 = conv_layer(in_channels, width, kernel, norm_layer, stride=2)

        # channels in and out and stride of the blocks of the first two layers
        inverted = [[(before, out, stride), *[(out, out, 1)] * (blocks - 1)]
                    for before, out, stride, blocks in zip((width, channels[0]), channels, (1, 2), num_blocks)]
        residuals = sum(before == out and stride == 1 for layer in inverted for before, out, stride in layer)
        rates = iter(torch.linspace(0, drop_path_rate, residuals + sum(full['cf_blocks']), device='cpu').tolist())
        for number, layer in enumerate(inverted, 1):
            self.add_module(f'layer_{number}', nn.Sequential(*(
                InvertedResidual(before, out, stride, 1, expand, norm_layer,
                                 next(rates) if before == out and stride == 1 else 0.0)
                for before, out, stride in layer)))
        dilation = 1
        for i in range(self.num_stages - 1):
            out, inner = channels[i + 2], full['cf_s_channels'][i]
            stride = 2 if 8 * 2**i <= output_stride else 1
            opening = InvertedResidual(channels[i + 1], out, stride, dilation, expand, norm_layer)
            dilation *= 2 // stride
            blocks = [ParCMetaBlock(inner, full['cf_ffn_channels'][i], full['meta_kernel_size'][i],
                                    full['use_pe'] and not j, parc_norm, full['ffn_dropout'], full['dropout'],
                                    next(rates)) for j in range(full['cf_blocks'][i])]
            self.add_module(f'layer_{i + 3}', nn.Sequential(
                opening, OuterFrame(out, inner, [*blocks, parc_norm(inner)], full['fusion'], norm_layer)))
        self.apply(_init)
        self.finish()

    def _layer(self, number: int) -> nn.Sequential:
        return self._modules[f'layer_{number}']

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        x = self.run(self.conv_1, x)
        maps = []
        for number in range(1, self.num_stages + 2):
            for block in self._layer(number):
                x = self.run(block, x)
            maps.append(x)
        return tuple(maps[i + 1] for i in self.out_indices)

    def parts(self, stage_id: int) -> List[nn.Module]:
        return [self._layer(stage_id + 1)] if stage_id else [self.conv_1, self._layer(1)]

    def _depths(self) -> List[int]:
        """Returns the number of layers of each stage."""
        frames = [self._layer(number)[1] for number in range(3, self.num_stages + 2)]
        # the norm in spatial_global_rep is not a layer, but the block before the frame is one
        return [len(self._layer(2)), *(len(frame.spatial_global_rep) for frame in frames)]

    @property
    def num_layers(self) -> int:
        return sum(self._depths())

    def layer_of(self, name: str) -> int:
        """Returns the layer id of a parameter. The official code has no layer-wise learning rate decay.

        Each inverted residual and each ParC block is a layer. The modules of an OuterFrame before its first and after
        its last ParC block have the id of that block.
        """
        layer, *rest = name.split('.')
        stage = int(layer[-1]) - 2
        if stage < 0:  # conv_1 and layer_1
            return 0
        depths = self._depths()
        first, last = sum(depths[:stage]) + 1, sum(depths[:stage + 1])
        if stage == 0:
            return first + int(rest[0])
        if rest[0] == '0':
            return first
        if rest[1] == 'spatial_global_rep':
            return min(first + 1 + int(rest[2]), last)
        return first + 1 if rest[1] == 'dim_adaptive' else last
