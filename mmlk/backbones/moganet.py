"""MogaNet: Multi-order Gated Aggregation Network, Li et al., ICLR 2024, arXiv:2211.03295.

Official code: https://github.com/Westlake-AI/MogaNet (Apache-2.0). Parameter names are the official ones.
"""
from typing import Any, Dict, Optional, Sequence, Set

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mmlk.layers import init_by_fan_out
from mmlk.ops import DepthwiseConv2d
from mmlk.registry import MODELS
from mmlk.reparam.branches import NormLayer

from .base import (Arch, _PatchEmbedBackbone, check_not_negative, check_per_stage, check_positive, is_number,
                   resolve_arch)


def _arch(embed_dims: Sequence[int], depths: Sequence[int]) -> Dict[str, Any]:
    return dict(embed_dims=tuple(embed_dims), depths=tuple(depths), ffn_ratios=(8, 8, 4, 4))


# Table A1 of the paper
ARCHS = {
    'XT': _arch((32, 64, 96, 192), (3, 3, 10, 2)),
    'T': _arch((32, 64, 128, 256), (3, 3, 12, 2)),
    'S': _arch((64, 128, 320, 512), (2, 3, 12, 2)),
    'B': _arch((64, 160, 320, 512), (4, 6, 22, 3)),
    'L': _arch((64, 160, 320, 640), (4, 6, 44, 4)),
    'XL': _arch((96, 192, 480, 960), (6, 6, 44, 4)),
}

_DEFAULTS = dict(init_value=1e-5, attn_dw_dilation=(1, 2, 3), attn_channel_split=(1, 3, 4))
_REQUIRED = ('embed_dims', 'depths', 'ffn_ratios')
_KERNELS = (5, 5, 7)


def _complete(arch: Arch) -> Dict[str, Any]:
    """Checks the arch and returns it as a dict with all default values."""
    full = resolve_arch(arch, ARCHS, _REQUIRED, _DEFAULTS, 'MogaNet')
    check_per_stage(full, *_REQUIRED)
    check_positive(full, 'embed_dims', 'depths', 'attn_dw_dilation', 'attn_channel_split')
    for key in ('attn_dw_dilation', 'attn_channel_split'):
        if len(full[key]) != len(_KERNELS):
            raise ValueError(f'{key} must have {len(_KERNELS)} entries, got {tuple(full[key])}')
    if any(width % sum(full['attn_channel_split']) for width in full['embed_dims']):
        raise ValueError(f"embed_dims must be multiples of {sum(full['attn_channel_split'])}, the sum of "
                         f"attn_channel_split, got {tuple(full['embed_dims'])}")
    check_not_negative(full, 'init_value')
    if not all(is_number(ratio) and int(width * ratio) >= 1
               for width, ratio in zip(full['embed_dims'], full['ffn_ratios'])):
        raise ValueError(f"ffn_ratios {tuple(full['ffn_ratios'])} leave no channels")
    return full


def _depthwise(channels: int, kernel_size: int, dilation: int = 1) -> nn.Conv2d:
    if dilation == 1:
        return DepthwiseConv2d(channels, kernel_size)
    return nn.Conv2d(channels, channels, kernel_size, 1, dilation * (kernel_size // 2), dilation, channels)


class ElementScale(nn.Module):
    """Multiplies each channel by a learned factor, initially 1e-5."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class MultiOrderDWConv(nn.Module):
    """Multi-order depthwise convolutions; section 4.2 of the paper.

    A depthwise 5x5 convolution is applied to all channels. Its output is split into three parts: the first is kept, the
    second goes through a dilated 5x5 convolution and the third through a dilated 7x7 one. A pointwise layer follows.

    Args:
        channels: Number of channels of the map.
        dilations: Dilation of each of the three depthwise convolutions.
        split: Relative sizes of the three parts.
    """

    def __init__(self, channels: int, dilations: Sequence[int], split: Sequence[int]):
        super().__init__()
        self.parts = [part * channels // sum(split) for part in split]
        self.DW_conv0 = _depthwise(channels, _KERNELS[0], dilations[0])
        self.DW_conv1 = _depthwise(self.parts[1], _KERNELS[1], dilations[1])
        self.DW_conv2 = _depthwise(self.parts[2], _KERNELS[2], dilations[2])
        self.PW_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        low, middle, high = self.DW_conv0(x).split(self.parts, dim=1)
        return self.PW_conv(torch.cat([low, self.DW_conv1(middle), self.DW_conv2(high)], dim=1))


class MultiOrderGatedAggregation(nn.Module):
    """Subtracts the mean of the features, multiplies multi-order features by a gate, adds a shortcut; section 4.2."""

    def __init__(self, channels: int, dilations: Sequence[int], split: Sequence[int]):
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(channels, channels, 1)
        self.value = MultiOrderDWConv(channels, dilations, split)
        self.proj_2 = nn.Conv2d(channels, channels, 1)
        self.act = nn.SiLU()
        self.sigma = ElementScale(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.proj_1(x)
        out = self.act(out + self.sigma(out - out.mean((2, 3), keepdim=True)))
        out = self.act(self.gate(out)) * self.act(self.value(out))
        return x + self.proj_2(out)


class ChannelAggregationFFN(nn.Module):
    """Pointwise layer, depthwise 3x3, subtraction of a common part of all channels, pointwise layer; section 4.3."""

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden_channels, 1)
        self.dwconv = _depthwise(hidden_channels, 3)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_channels, channels, 1)
        self.decompose = nn.Conv2d(hidden_channels, 1, 1)
        self.sigma = ElementScale(hidden_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.dwconv(self.fc1(x)))
        return self.fc2(x + self.sigma(x - self.act(self.decompose(x))))


class MogaBlock(nn.Module):
    """The block of MogaNet: spatial and channel aggregation, each with a norm, layer scale and a shortcut."""

    def __init__(self, channels: int, hidden_channels: int, dilations: Sequence[int], split: Sequence[int],
                 init_value: float, drop_path: float, norm_layer: NormLayer):
        super().__init__()
        self.norm1 = norm_layer(channels)
        self.attn = MultiOrderGatedAggregation(channels, dilations, split)
        self.norm2 = norm_layer(channels)
        self.mlp = ChannelAggregationFFN(channels, hidden_channels)
        self.layer_scale_1 = nn.Parameter(torch.full((1, channels, 1, 1), float(init_value)))
        self.layer_scale_2 = nn.Parameter(torch.full((1, channels, 1, 1), float(init_value)))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1 * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2 * self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A 3x3 convolution with stride 2 and a norm; in the stem two of each, with a GELU between them."""

    def __init__(self, in_channels: int, channels: int, norm_layer: NormLayer, stem: bool):
        super().__init__()
        if stem:
            self.projection = nn.Sequential(
                nn.Conv2d(in_channels, channels // 2, 3, 2, 1), norm_layer(channels // 2), nn.GELU(),
                nn.Conv2d(channels // 2, channels, 3, 2, 1), norm_layer(channels))
        else:
            self.projection = nn.Conv2d(in_channels, channels, 3, 2, 1)
            self.norm = norm_layer(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection(x)
        return self.norm(x) if 'norm' in self._modules else x


@MODELS.register_module()
class MogaNet(_PatchEmbedBackbone):
    """MogaNet as a feature extractor.

    The norm after each stage is also part of the input of the next stage, and is pretrained. No other norms are added.

    Args:
        arch: A name of ``ARCHS`` ('XT' is the official 'x-tiny', and so on), or a dict with ``embed_dims``, ``depths``
            and ``ffn_ratios`` (one per stage) and optionally ``init_value`` (of layer scale), ``attn_dw_dilation`` and
            ``attn_channel_split`` (of the three depthwise convolutions).
        norm_cfg: Norm layer config; SyncBN in the official dense prediction.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, embed_dims[i], ceil(H / s), ceil(W / s)), s = 4, 8, 16,
        32. H and W may have any value.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    blocks_name = 'blocks'

    def __init__(self, arch: Arch = 'T', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: dict = dict(type='BN'),
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        full = _complete(arch)
        dims, depths = full['embed_dims'], full['depths']
        super().__init__(dims, in_channels=in_channels, out_indices=out_indices, drop_path_rate=drop_path_rate,
                         frozen_stages=frozen_stages, norm_cfg=norm_cfg, norm_eval=norm_eval, with_cp=with_cp,
                         merged=merged, init_cfg=init_cfg)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        width = in_channels
        for i in range(self.num_stages):
            self.add_module(f'patch_embed{i + 1}', PatchEmbed(width, dims[i], self.norm_layer, stem=i == 0))
            width = dims[i]
            self.add_module(f'blocks{i + 1}', nn.ModuleList(
                MogaBlock(width, int(width * full['ffn_ratios'][i]), full['attn_dw_dilation'],
                          full['attn_channel_split'], full['init_value'], next(rates), self.norm_layer)
                for _ in range(depths[i])))
            self.add_module(f'norm{i + 1}', self.norm_layer(width))
        self.apply(init_by_fan_out)
        self.finish()

    def no_weight_decay(self) -> Set[str]:
        return {name for name, _ in self.named_parameters()
                if name.endswith(('.layer_scale_1', '.layer_scale_2', '.sigma.scale'))}

    @property
    def num_layers(self) -> int:
        return 12

    def layer_of(self, name: str) -> int:
        """Returns the layer id of a parameter, as ``layer_decay_optimizer_constructor.py`` of the official code.

        There are 12 layers for every depth, one of which is empty. A block of the third stage has the id ``min(3 +
        index // 2, 11)``. The norms after the stages have the id of a head.
        """
        part, index, *_ = name.split('.')
        kind, stage = part[:-1], int(part[-1])
        if kind == 'norm':
            return 13
        if stage >= 4:
            return 12
        if kind == 'patch_embed':
            return stage + 1 if stage > 1 else 0
        return min(3 + int(index) // 2, 11) if stage == 3 else stage + 1
