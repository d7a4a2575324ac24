"""MSCAN, the encoder of SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation, Guo et al.,
NeurIPS 2022, arXiv:2209.08575.

Official code: https://github.com/Visual-Attention-Network/SegNeXt (Apache-2.0). Parameter names are the official ones.
"""
from typing import Any, Dict, Optional, Sequence

from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d
from mmlk.registry import MODELS
from mmlk.reparam.branches import NormLayer

from . import van
from .base import Arch

_KERNELS = (7, 11, 21)

# Table 2 of the paper: the widths and depths of VAN's first sizes
ARCHS = {name: dict(van.ARCHS[as_in]) for name, as_in in dict(T='B0', S='B1', B='B2', L='B3').items()}


class MultiScaleAttention(nn.Module):
    """Multiplies a map by an attention map of several scales; section 3.1 of the paper.

    To the output of a depthwise 5x5 convolution those of three pairs of depthwise stripes are added (1x7 and 7x1, 1x11
    and 11x1, 1x21 and 21x1), and a pointwise layer makes the attention map of the sum.

    Args:
        channels: Number of channels of the map.

    Shape:
        Input and output: (N, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv0 = DepthwiseConv2d(channels, 5)
        for i, kernel in enumerate(_KERNELS):
            self.add_module(f'conv{i}_1', DepthwiseConv2d(channels, (1, kernel)))
            self.add_module(f'conv{i}_2', DepthwiseConv2d(channels, (kernel, 1)))
        self.conv3 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = self.conv0(x)
        scales = near
        for i in range(len(_KERNELS)):
            scales = scales + self._modules[f'conv{i}_2'](self._modules[f'conv{i}_1'](near))
        return x * self.conv3(scales)


class StemConv(nn.Module):
    """Two 3x3 convolutions with stride 2, each with a norm, and a GELU between them."""

    def __init__(self, in_channels: int, channels: int, norm_layer: NormLayer):
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, channels // 2, 3, 2, 1), norm_layer(channels // 2), nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, 2, 1), norm_layer(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


@MODELS.register_module()
class MSCAN(van.VAN):
    """MSCAN as a feature extractor: VAN with another attention and another stem.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``embed_dims``, ``depths`` and ``mlp_ratios`` (one per stage; the
            named archs have 8, 8, 4 and 4).

    All other arguments are those of :class:`VAN` and :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, embed_dims[i], ceil(H / s), ceil(W / s)), s = 4, 8, 16,
        32. H and W may have any value.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    archs = ARCHS

    def __init__(self, arch: Arch = 'T', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: dict = dict(type='BN'),
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        super().__init__(arch, in_channels=in_channels, out_indices=out_indices, drop_path_rate=drop_path_rate,
                         frozen_stages=frozen_stages, norm_cfg=norm_cfg, norm_eval=norm_eval, with_cp=with_cp,
                         merged=merged, init_cfg=init_cfg)

    @classmethod
    def complete(cls, arch: Arch) -> Dict[str, Any]:
        full = super().complete(arch)
        if full['embed_dims'][0] < 2:
            raise ValueError(f"embed_dims must begin with at least 2, half of which the stem has first, got "
                             f"{tuple(full['embed_dims'])}")
        return full

    @staticmethod
    def attention(channels: int) -> nn.Module:
        return MultiScaleAttention(channels)

    def stem(self, in_channels: int, channels: int) -> nn.Module:
        return StemConv(in_channels, channels, self.norm_layer)
