"""HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions, Rao et al., NeurIPS 2022,
arXiv:2207.14284.

Official code: https://github.com/raoyongming/HorNet (MIT). Parameter names are the official ones.
"""
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mmlk.layers import ChannelNorm
from mmlk.ops import DepthwiseConv2d
from mmlk.ops.global_filter import global_filter2d, resize_filter
from mmlk.registry import MODELS

from .base import Arch, check_not_negative, check_per_stage, check_positive, is_integer, is_number, resolve_arch
from .convnext import ConvNeXt


def _arch(base_dim: int, *filters: Dict[str, int]) -> Dict[str, Any]:
    """Returns an arch with global filters of the given sizes in the last two stages, or only 7x7 convolutions."""
    sizes = ({}, {}, *(filters or ({}, {})))
    gnconv = tuple(dict(order=order, s=1 / 3, **size) for order, size in zip((2, 3, 4, 5), sizes))
    return dict(depths=(2, 3, 18, 2), base_dim=base_dim, gnconv=gnconv)


# From hornet.py of the official code: 7x7 convolutions, or global filters (GF) for images of 224x224 or 384x384. The
# filters for 384x384 are also used in the official segmentation models, and in the detector of L-GF.
ARCHS = {}
for _name, _dim in dict(T=64, S=96, B=128, L=192).items():
    ARCHS[_name] = _arch(_dim)
    ARCHS[f'{_name}-GF'] = _arch(_dim, dict(h=14, w=8), dict(h=7, w=4))
    ARCHS[f'{_name}-GF-384'] = _arch(_dim, dict(h=24, w=13), dict(h=12, w=7))

_DEFAULTS = dict(layer_scale_init_value=1e-6)
_REQUIRED = ('depths', 'base_dim', 'gnconv')
_MIXER_DEFAULTS = dict(order=5, s=1.0, h=None, w=None)


def _complete_mixer(mixer: Dict[str, Any], channels: int) -> Dict[str, Any]:
    if not isinstance(mixer, dict):
        raise ValueError(f'gnconv must be a dict per stage, got {mixer!r}')
    unknown = sorted(map(str, set(mixer) - set(_MIXER_DEFAULTS)))
    if unknown:
        raise ValueError(f"unknown keys in gnconv: {', '.join(unknown)}; it takes {', '.join(_MIXER_DEFAULTS)}")
    full = {**_MIXER_DEFAULTS, **mixer}
    order, size = full['order'], (full['h'], full['w'])
    if not is_integer(order) or order < 1:
        raise ValueError(f'gnconv: order must be a positive integer, got {order!r}')
    if not is_number(full['s']):
        raise ValueError(f"gnconv: s must be a number, got {full['s']!r}")
    if size != (None, None) and not all(is_integer(v) and v > 0 for v in size):
        raise ValueError(f'gnconv: h and w must both be positive integers or both be left out, '
                         f'got {size[0]!r} and {size[1]!r}')
    # the smallest gate must have a whole number of channels; with a global filter it must be even, for the two halves
    share = 2**(order - 1) * (1 if size == (None, None) else 2)
    if channels % share:
        raise ValueError(f'gnconv: order {order} needs channels that {share} divides, got {channels} of base_dim')
    return full


def _laid_out(part: Tensor, whole: Tensor) -> Tensor:
    """Converts a slice of the channels to the memory format of the whole map, which its strides do not show."""
    channels_last = whole.is_contiguous(memory_format=torch.channels_last) and not whole.is_contiguous()
    return part.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class GlobalLocalFilter(nn.Module):
    """A 3x3 depthwise convolution on half of the channels and a global filter on the others.

    The channels of the two outputs are interleaved.

    The state dict keys are the official ones: ``dw``, ``complex_weight`` (C / 2, h, w, 2), ``pre_norm`` and
    ``post_norm``.

    Args:
        channels: Number of channels of the map, even.
        size: Height and width of the filter in the frequency domain (the half spectrum).

    Shape:
        Input and output: (N, C, H, W). If ``size`` is not (H, W // 2 + 1), the filter is resized.
    """

    def __init__(self, channels: int, size: Tuple[int, int]):
        super().__init__()
        self.dw = DepthwiseConv2d(channels // 2, 3, bias=False)
        self.complex_weight = nn.Parameter(torch.empty(channels // 2, *size, 2))
        nn.init.trunc_normal_(self.complex_weight, std=0.02)
        self.pre_norm = ChannelNorm(channels, eps=1e-6)
        self.post_norm = ChannelNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        near, far = self.pre_norm(x).chunk(2, 1)
        near, far = self.dw(_laid_out(near, x)), global_filter2d(far, self.complex_weight)
        return self.post_norm(_laid_out(torch.stack((near, far), 2).flatten(1, 2), x))


class GatedConv(nn.Module):
    """Recursive gated convolution: g^n Conv of section 3.1 of the paper.

    A depthwise convolution (or global filter) computes ``order`` gates with C / 2^(order - 1), ..., C / 2, C channels.
    The input is projected to the channels of the first gate and multiplied by it. Then, for each further gate, a
    pointwise layer doubles the number of channels, and the result is multiplied by the gate.

    Args:
        channels: Number of channels of the map.
        order: Number of gates.
        scale: Constant factor of the gates.
        size: Height and width of the global filter in the frequency domain; None for a 7x7 convolution.

    Shape:
        Input and output: (N, C, H, W).
    """

    def __init__(self, channels: int, order: int, scale: float, size: Optional[Tuple[int, int]]):
        super().__init__()
        self.dims = [channels // 2**i for i in reversed(range(order))]
        self.scale = scale
        gates = sum(self.dims)
        self.proj_in = nn.Conv2d(channels, 2 * channels, 1)
        self.dwconv = DepthwiseConv2d(gates, 7) if size is None else GlobalLocalFilter(gates, size)
        self.proj_out = nn.Conv2d(channels, channels, 1)
        self.pws = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(self.dims, self.dims[1:]))

    def forward(self, x: Tensor) -> Tensor:
        both = self.proj_in(x)
        x, gates = both.split((self.dims[0], sum(self.dims)), 1)
        first, *others = (self.dwconv(_laid_out(gates, both)) * self.scale).split(self.dims, 1)
        x = x * first
        for pointwise, gate in zip(self.pws, others):
            x = pointwise(x) * gate
        return self.proj_out(x)


class Block(nn.Module):
    """The block of HorNet: norm and gated convolution with a shortcut, then norm and MLP with a shortcut.

    Args:
        channels: Number of channels of the map.
        gnconv: The token mixer.
        drop_path: Drop rate of stochastic depth.
        layer_scale_init_value: Initial value of layer scale; 0 for no layer scale.
    """

    def __init__(self, channels: int, gnconv: nn.Module, drop_path: float, layer_scale_init_value: float):
        super().__init__()
        scaled = layer_scale_init_value > 0
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((channels, ), float(layer_scale_init_value)))
                                    if scaled else None for _ in range(2))
        self.norm1 = ChannelNorm(channels, eps=1e-6)
        self.gnconv = gnconv
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out = self.gnconv(self.norm1(x))
        if self.gamma1 is not None:
            out = self.gamma1.reshape(-1, 1, 1) * out
        x = x + self.drop_path(out)
        out = self.pwconv2(self.act(self.pwconv1(self.norm2(x.permute(0, 2, 3, 1)))))
        if self.gamma2 is not None:
            out = self.gamma2 * out
        return x + self.drop_path(out.permute(0, 3, 1, 2))


@MODELS.register_module()
class HorNet(ConvNeXt):
    """HorNet as a feature extractor at any size, with a norm on each returned map.

    A global filter is made for one map size. For other sizes it is interpolated in each forward pass.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``depths`` (one per stage), ``base_dim`` (channels of the first stage,
            which double with each), ``gnconv`` (one dict per stage) and optionally ``layer_scale_init_value`` (0: no
            layer scale). A ``gnconv`` has ``order``, ``s`` (factor of the gates) and, for a global filter in place of
            the 7x7 convolution, ``h`` and ``w``, its size in the frequency domain.
        norm_cfg: Norm layer config of the norms on the returned maps; None for LayerNorm over the channels, as
            officially. The others are LayerNorms: published weights hold no other.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, base_dim * 2**i, H // s, W // s), s = 4, 8, 16, 32. Rows
        and columns that do not fill a patch are cropped, as officially. H and W must be at least the s of the last
        stage.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    def __init__(self, arch: Arch = 'T-GF', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: Optional[dict] = None,
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        if norm_cfg is None:
            norm_cfg = dict(type=ChannelNorm, eps=1e-6)
        super().__init__(arch, in_channels=in_channels, out_indices=out_indices, drop_path_rate=drop_path_rate,
                         frozen_stages=frozen_stages, norm_cfg=norm_cfg, norm_eval=norm_eval, with_cp=with_cp,
                         merged=merged, init_cfg=init_cfg)

    @staticmethod
    def complete(arch: Arch) -> Dict[str, Any]:
        """Checks the arch and returns it as a dict with all default values."""
        full = resolve_arch(arch, ARCHS, _REQUIRED, _DEFAULTS, 'HorNet')
        check_per_stage(full, 'depths', 'gnconv')
        check_positive({**full, 'base_dim': (full['base_dim'], )}, 'depths', 'base_dim')
        check_not_negative(full, 'layer_scale_init_value')
        full['dims'] = tuple(full['base_dim'] * 2**stage for stage in range(len(full['depths'])))
        full['gnconv'] = [_complete_mixer(mixer, channels) for mixer, channels in zip(full['gnconv'], full['dims'])]
        return full

    def output_norm(self, arch: Dict[str, Any], stage: int) -> nn.Module:
        return self.norm_layer(arch['dims'][stage])

    def block(self, arch: Dict[str, Any], stage: int, index: int, drop_path: float, merged: bool) -> nn.Module:
        channels, mixer = arch['dims'][stage], arch['gnconv'][stage]
        size = (mixer['h'], mixer['w']) if mixer['h'] else None
        return Block(channels, GatedConv(channels, mixer['order'], mixer['s'], size), drop_path,
                     arch['layer_scale_init_value'])

    def blocks_per_layer(self, stage: int) -> int:
        """Returns the number of blocks with the same layer id, as ``layer_decay_optimizer_constructor.py``.

        It is two in the third stage. Every other stage is a single layer.
        """
        return 2 if stage == 2 else len(self.stages[stage])

    def resized_weight(self, name: str, value: Tensor) -> Tensor:
        """Resizes a global filter of another size, as ``mmcv_custom/checkpoint.py`` of the official code does."""
        if not name.endswith('complex_weight') or value.dim() != 4:
            return value
        return resize_filter(value, self.get_parameter(name).shape[1:3])
