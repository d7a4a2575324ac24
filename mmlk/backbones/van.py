"""VAN: Visual Attention Network, Guo et al., Computational Visual Media 2023, arXiv:2202.09741.

Official code: https://github.com/Visual-Attention-Network/VAN-Classification and VAN-Segmentation (Apache-2.0).
Parameter names are the official ones.
"""
from collections import OrderedDict
from typing import Any, Dict, Optional, Sequence

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mmlk.layers import ChannelNorm, init_by_fan_out
from mmlk.ops import DepthwiseConv2d
from mmlk.registry import MODELS
from mmlk.reparam.branches import NormLayer

from .base import Arch, _PatchEmbedBackbone, check_per_stage, check_positive, is_number, resolve_arch


def _arch(embed_dims: Sequence[int], depths: Sequence[int]) -> Dict[str, Any]:
    return dict(embed_dims=tuple(embed_dims), depths=tuple(depths), mlp_ratios=(8, 8, 4, 4))


# Table 5 of the paper
ARCHS = {
    'B0': _arch((32, 64, 160, 256), (3, 3, 5, 2)),
    'B1': _arch((64, 128, 320, 512), (2, 2, 4, 2)),
    'B2': _arch((64, 128, 320, 512), (3, 3, 12, 3)),
    'B3': _arch((64, 128, 320, 512), (3, 5, 27, 3)),
    'B4': _arch((64, 128, 320, 512), (3, 6, 40, 3)),
    'B5': _arch((96, 192, 480, 768), (3, 3, 24, 3)),
    'B6': _arch((96, 192, 384, 768), (6, 6, 90, 6)),
}

_REQUIRED = ('embed_dims', 'depths', 'mlp_ratios')


class LargeKernelAttention(nn.Module):
    """Multiplies a map by an attention map that three convolutions compute; section 3.1 of the paper.

    A depthwise 5x5 convolution, a depthwise 7x7 one with dilation 3 and a pointwise layer together have the receptive
    field of a 23x23 convolution.

    Args:
        channels: Number of channels of the map.

    Shape:
        Input and output: (N, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv0 = DepthwiseConv2d(channels, 5)
        self.conv_spatial = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv1(self.conv_spatial(self.conv0(x)))


class SpatialAttention(nn.Module):
    """Pointwise layer, GELU, attention, pointwise layer, shortcut.

    Args:
        channels: Number of channels of the map.
        attention: The attention, from (N, C, H, W) to (N, C, H, W).
    """

    def __init__(self, channels: int, attention: nn.Module):
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.activation = nn.GELU()
        self.spatial_gating_unit = attention
        self.proj_2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj_2(self.spatial_gating_unit(self.activation(self.proj_1(x))))


class ConvolutionalMlp(nn.Module):
    """Pointwise layer, depthwise 3x3 convolution, GELU, pointwise layer."""

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden_channels, 1)
        self.dwconv = nn.Sequential(OrderedDict(dwconv=DepthwiseConv2d(hidden_channels, 3)))
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    """The block of VAN and MSCAN: spatial attention and MLP, each with a norm, layer scale and a shortcut.

    Args:
        channels: Number of channels of the map.
        hidden_channels: Number of hidden channels of the MLP.
        attention: The attention, from (N, C, H, W) to (N, C, H, W).
        drop_path: Drop rate of stochastic depth.
        norm_layer: Returns a norm for a number of channels.
    """

    def __init__(self, channels: int, hidden_channels: int, attention: nn.Module, drop_path: float,
                 norm_layer: NormLayer):
        super().__init__()
        self.norm1 = norm_layer(channels)
        self.attn = SpatialAttention(channels, attention)
        self.norm2 = norm_layer(channels)
        self.mlp = ConvolutionalMlp(channels, hidden_channels)
        self.layer_scale_1, self.layer_scale_2 = (nn.Parameter(torch.full((channels, ), 1e-2)) for _ in range(2))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1.reshape(-1, 1, 1) * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2.reshape(-1, 1, 1) * self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A convolution whose patches overlap, and a norm."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int, norm_layer: NormLayer):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2)
        self.norm = norm_layer(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


@MODELS.register_module()
class VAN(_PatchEmbedBackbone):
    """VAN as a feature extractor.

    The LayerNorm after each stage is also part of the input of the next stage, and is pretrained. Its eps is 1e-5, as
    in the official dense prediction; the official classifier has 1e-6. A subclass that changes the attention or the
    stem overrides ``archs``, ``attention`` and ``stem``.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``embed_dims``, ``depths`` and ``mlp_ratios`` (one per stage).
        norm_cfg: Norm layer config of all norms but those after the stages; SyncBN in the official dense prediction.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, embed_dims[i], ceil(H / s), ceil(W / s)), s = 4, 8, 16,
        32. H and W may have any value.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    #: the settings of the named archs
    archs = ARCHS
    blocks_name = 'block'

    def __init__(self, arch: Arch = 'B0', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: dict = dict(type='BN'),
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        full = self.complete(arch)
        dims, depths = full['embed_dims'], full['depths']
        super().__init__(dims, in_channels=in_channels, out_indices=out_indices, drop_path_rate=drop_path_rate,
                         frozen_stages=frozen_stages, norm_cfg=norm_cfg, norm_eval=norm_eval, with_cp=with_cp,
                         merged=merged, init_cfg=init_cfg)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        for i in range(self.num_stages):
            width, hidden = dims[i], int(dims[i] * full['mlp_ratios'][i])
            embed = PatchEmbed(dims[i - 1], width, 3, 2, self.norm_layer) if i else self.stem(in_channels, width)
            self.add_module(f'patch_embed{i + 1}', embed)
            self.add_module(f'block{i + 1}', nn.ModuleList(
                Block(width, hidden, self.attention(width), next(rates), self.norm_layer) for _ in range(depths[i])))
            self.add_module(f'norm{i + 1}', ChannelNorm(width, eps=1e-5))
        self.apply(init_by_fan_out)
        self.finish()

    @classmethod
    def complete(cls, arch: Arch) -> Dict[str, Any]:
        """Checks the arch and returns it as a dict."""
        full = resolve_arch(arch, cls.archs, _REQUIRED, {}, cls.__name__)
        check_per_stage(full, *_REQUIRED)
        check_positive(full, 'embed_dims', 'depths')
        if not all(is_number(ratio) and int(width * ratio) >= 1
                   for width, ratio in zip(full['embed_dims'], full['mlp_ratios'])):
            raise ValueError(f"mlp_ratios {tuple(full['mlp_ratios'])} leave no channels")
        return full

    @staticmethod
    def attention(channels: int) -> nn.Module:
        """Returns the attention of a block."""
        return LargeKernelAttention(channels)

    def stem(self, in_channels: int, channels: int) -> nn.Module:
        """Returns what makes the first map, with stride 4, of the image."""
        return PatchEmbed(in_channels, channels, 7, 4, self.norm_layer)

    @property
    def num_layers(self) -> int:
        return sum(len(self.blocks_of(i + 1)) for i in range(self.num_stages))

    def layer_of(self, name: str) -> int:
        """Returns the layer id of a parameter. The official code has no layer-wise learning rate decay.

        Each block is a layer, as in a transformer. Downsampling has the id of the block after it, the norm after a
        stage that of the block before it.
        """
        part, index, *_ = name.split('.')
        kind, stage = part[:-1], int(part[-1])
        if (kind, stage) == ('patch_embed', 1):
            return 0
        depths = [len(self.blocks_of(i + 1)) for i in range(stage)]
        block = {'patch_embed': 0, 'norm': depths[-1] - 1}.get(kind)
        return sum(depths[:-1]) + 1 + (int(index) if block is None else block)
