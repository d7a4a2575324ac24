"""OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels, Lou and Yu, CVPR 2025,
arXiv:2502.20087.

Official code: https://github.com/LMMMEng/OverLoCK (Apache-2.0). Parameter names are the official ones, in both forms.
"""
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from mmlk.layers import GRN, ChannelNorm
from mmlk.ops import DepthwiseConv2d, neighborhood_av
from mmlk.ops.backends.neighborhood import window_starts
from mmlk.ops.layout import symbolic
from mmlk.registry import MODELS
from mmlk.reparam.branches import NormLayer
from mmlk.reparam.dilated import DilatedReparamBlock

from .base import (Arch, BaseBackbone, check_flags, check_not_negative, check_per_stage, check_positive,
                   check_sequences, is_integer, is_number, resolve_arch)

# The parallel branches of the dilated blocks, (kernel size, dilation) each: not those of UniRepLKNet.
BRANCHES: Dict[int, Tuple[Tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    19: ((5, 1), (7, 1), (9, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


def _arch(depth: Sequence[int], sub_depth: Sequence[int], embed_dim: Sequence[int],
          sub_num_heads: Sequence[int]) -> Dict[str, Any]:
    return dict(depth=tuple(depth), sub_depth=tuple(sub_depth), embed_dim=tuple(embed_dim),
                kernel_size=(17, 15, 13, 7), mlp_ratio=(4, 4, 4, 4), sub_num_heads=tuple(sub_num_heads),
                sub_mlp_ratio=(3, 3))


# overlock_xt, _t, _s and _b of the official code
ARCHS = {
    'XT': _arch((2, 2, 3, 2), (6, 2), (56, 112, 256, 336), (4, 6)),
    'T': _arch((4, 4, 6, 2), (12, 2), (64, 128, 256, 512), (4, 8)),
    'S': _arch((6, 6, 8, 3), (16, 3), (64, 128, 320, 512), (8, 16)),
    'B': _arch((8, 8, 10, 4), (20, 4), (80, 160, 384, 576), (6, 9)),
}

_DEFAULTS = dict(ls_init_value=(None, None, 1, 1), res_scale=True, smk_size=5)
_PER_STAGE = ('depth', 'embed_dim', 'kernel_size', 'mlp_ratio')
_PER_SUB_STAGE = ('sub_depth', 'sub_num_heads', 'sub_mlp_ratio')
_GRID = 7  # the context is averaged over 7x7 cells, to which each pixel is compared


def _complete(arch: Arch) -> Dict[str, Any]:
    """Checks the arch and returns it as a dict with all default values."""
    full = resolve_arch(arch, ARCHS, (*_PER_STAGE, *_PER_SUB_STAGE), _DEFAULTS, 'OverLoCK')
    check_per_stage(full, *_PER_STAGE, 'ls_init_value')
    check_per_stage(full, *_PER_SUB_STAGE)
    if len(full['depth']) != 4 or len(full['sub_depth']) != 2:
        raise ValueError('OverLoCK has 4 stages, and a second part in the last 2 of them, got '
                         f"{len(full['depth'])} and {len(full['sub_depth'])}")
    check_positive(full, 'depth', 'embed_dim', 'sub_depth', 'sub_num_heads')
    check_flags(full, 'res_scale')
    check_sequences(full, 'kernel_size')
    for kernel in full['kernel_size']:
        if not is_integer(kernel) or kernel not in BRANCHES:
            raise ValueError(f"kernel_size: a kernel size may be {', '.join(map(str, BRANCHES))}, got {kernel!r}")
    least = min(full['kernel_size'][2:])
    if not is_integer(full['smk_size']) or not 0 < full['smk_size'] <= least or full['smk_size'] % 2 == 0:
        raise ValueError(f"smk_size must be odd and at most {least}, the kernel beside it, got {full['smk_size']!r}")
    for value in full['ls_init_value']:
        if value is not None:
            check_not_negative(dict(ls_init_value=value), 'ls_init_value')
    dims = full['embed_dim']
    if dims[0] % 2 or dims[3] % 4:
        raise ValueError('embed_dim must be even in the first stage and a multiple of 4 in the last, got '
                         f'{tuple(dims)}')
    for width, heads in zip(dims[2:], full['sub_num_heads']):
        if width % (4 * heads):
            raise ValueError(f'sub_num_heads: {heads} heads need channels that {4 * heads} divides, got {width}')
    for key, widths in (('mlp_ratio', dims), ('sub_mlp_ratio', dims[2:])):
        if not all(is_number(ratio) and int(width * ratio) >= 1 for width, ratio in zip(widths, full[key])):
            raise ValueError(f'{key} {tuple(full[key])} leave no channels')
    return full


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    """Converts a map to the memory format of another."""
    channels_last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class SEModule(nn.Module):
    """Squeeze-and-excitation with GELU and at least 16 hidden channels."""

    def __init__(self, channels: int):
        super().__init__()
        inner = max(16, channels // 8)
        self.proj = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), nn.GELU(),
                                  nn.Conv2d(inner, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.proj(x)


class LayerScale(nn.Module):
    """A scale and a shift for each channel. The scale has the shape of a depthwise 1x1 kernel, as officially."""

    def __init__(self, channels: int, init_value: float):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1, 1), float(init_value)))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # the cast is for autocast: the official convolution would run in its dtype
        return x * self.weight[:, 0].to(x.dtype) + self.bias[:, None, None].to(x.dtype)


def _scale(channels: int, init_value: Optional[float]) -> nn.Module:
    return nn.Identity() if init_value is None else LayerScale(channels, init_value)


class ResDWConv(DepthwiseConv2d):
    """A depthwise 3x3 convolution with a shortcut."""

    def __init__(self, channels: int):
        super().__init__(channels, 3)

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def _mlp(channels: int, hidden: int, out_channels: int) -> List[nn.Module]:
    return [nn.Conv2d(channels, hidden, 1), nn.GELU(), ResDWConv(hidden), GRN(hidden, channels_first=True),
            nn.Conv2d(hidden, out_channels, 1)]


class RepConvBlock(nn.Module):
    """The block of the Base-Net and the Overview-Net: a large convolution with dilated branches, SE, and an MLP.

    Args:
        channels: Number of channels of the map.
        kernel_size: A key of ``BRANCHES``.
        mlp_ratio: Hidden channels of the MLP divided by ``channels``.
        ls_init_value: Initial value of layer scale, None for no layer scale.
        res_scale: Whether layer scale is applied to the shortcut instead of the branch.
        drop_path: Drop rate of stochastic depth.
        norm_layer: A function that takes a number of channels and returns a norm layer.
        merged: If True, builds the merged form.

    Shape:
        Input and output: (N, C, H, W).
    """

    def __init__(self, channels: int, kernel_size: int, mlp_ratio: float, ls_init_value: Optional[float],
                 res_scale: bool, drop_path: float, norm_layer: NormLayer, merged: bool):
        super().__init__()
        self.res_scale = res_scale
        self.dwconv = ResDWConv(channels)
        self.proj = nn.Sequential(
            ChannelNorm(channels), DilatedReparamBlock(channels, kernel_size, norm_layer, merged, BRANCHES),
            norm_layer(channels), SEModule(channels), *_mlp(channels, int(channels * mlp_ratio), channels),
            DropPath(drop_path))
        self.ls = _scale(channels, ls_init_value)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(x)
        if self.res_scale:
            return self.ls(x) + self.proj(x)
        return x + self.proj[-1](self.ls(self.proj[:-1](x)))


def _enlarged(height: Any, width: Any, kernel_size: int) -> Tuple[Any, Any]:
    """Returns the size to which a map is enlarged, at which its shorter side is at least that of the kernel.

    For symbolic sizes, one expression holds for maps that need no enlargement and for those that do.
    """
    if symbolic(height, width):
        traced = isinstance(height, Tensor)
        least, most = (torch.minimum, torch.maximum) if traced else (torch.sym_min, torch.sym_max)
        shorter = least(height, width)
        return most(height, kernel_size * height // shorter), most(width, kernel_size * width // shorter)
    if min(height, width) >= kernel_size:
        return height, width
    if height < width:  # in floating point and in this order, as in the official code, which decides the rounding
        return kernel_size, int(kernel_size / height * width)
    return int(kernel_size / width * height), kernel_size


def _position_bias(table: Tensor, height: Any, width: Any) -> Tensor:
    """Returns the bias of each weight by the position of its value relative to the pixel.

    Args:
        table: (g, 2k - 1, 2k - 1), whose centre is the pixel itself.
        height, width: Size of the map.

    Returns:
        (g, H, W, k, k).
    """
    kernel_size = (len(table[0]) + 1) // 2
    for axis, length in ((1, height), (2, width)):
        pixels = torch.arange(length, device=table.device)
        first = window_starts(length, kernel_size, table.device) - pixels + kernel_size - 1
        taps = first[:, None] + torch.arange(kernel_size, device=table.device)
        table = table.index_select(axis, taps.flatten())
    return table.reshape(len(table), height, kernel_size, width, kernel_size).transpose(2, 3)


class DynamicConvBlock(nn.Module):
    """The block of the Focus-Net: context-mixing dynamic convolution (ContMix), section 3.3 of the paper.

    The weights of the convolutions differ from pixel to pixel. Those of a pixel are predicted from its similarity to
    each of 7x7 cells of the context. Half of the heads have k x k windows, the other half smaller ones. Maps whose
    shorter side is less than k are enlarged for it, and the result is averaged over the cells of the map.

    Args:
        channels: Number of channels of the map x.
        context_channels: Number of channels of the context h.
        kernel_size: k, a key of ``BRANCHES``.
        small_kernel: Size of the smaller windows.
        num_heads: Number of heads with each size of window, divided by 2.
        mlp_ratio: Hidden channels of the MLP divided by ``channels``.
        ls_init_value: Initial value of layer scale, None for no layer scale.
        res_scale: Whether layer scale is applied to the shortcut instead of the branch.
        drop_path: Drop rate of stochastic depth.
        norm_layer: A function that takes a number of channels and returns a norm layer.
        merged: If True, builds the merged form.
        first: Whether this is the first block after the Overview-Net, to which h and the overview are the same.

    Shape:
        Input: x (N, channels, H, W); h and the overview, both (N, context_channels, H, W). Output: (N, channels +
        context_channels, H, W), the next x and h.
    """

    def __init__(self, channels: int, context_channels: int, kernel_size: int, small_kernel: int, num_heads: int,
                 mlp_ratio: float, ls_init_value: Optional[float], res_scale: bool, drop_path: float,
                 norm_layer: NormLayer, merged: bool, first: bool):
        super().__init__()
        both = channels + context_channels
        self.split = [channels, context_channels]
        self.kernel_sizes = [small_kernel, kernel_size]
        self.num_heads = 2 * num_heads
        self.scale = (channels // self.num_heads)**-0.5
        self.res_scale = res_scale
        if not first:
            self.x_scale = LayerScale(context_channels, 1)
            self.h_scale = LayerScale(context_channels, 1)
        self.dwconv1 = ResDWConv(both)
        self.norm1 = ChannelNorm(both)
        self.fusion = nn.Sequential(DepthwiseConv2d(both, 3), norm_layer(both), nn.GELU(),
                                    nn.Conv2d(both, channels, 1), GRN(channels, channels_first=True))
        self.weight_query = nn.Sequential(nn.Conv2d(channels, channels // 2, 1, bias=False), norm_layer(channels // 2))
        self.weight_key = nn.Sequential(nn.AdaptiveAvgPool2d(_GRID),
                                        nn.Conv2d(context_channels, channels // 2, 1, bias=False),
                                        norm_layer(channels // 2))
        self.weight_proj = nn.Conv2d(_GRID**2, kernel_size**2 + small_kernel**2, 1)
        self.dyconv_proj = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), norm_layer(channels))
        self.lepe = nn.Sequential(DilatedReparamBlock(channels, kernel_size, norm_layer, merged, BRANCHES),
                                  norm_layer(channels))
        self.se_layer = SEModule(channels)
        self.gate = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), norm_layer(channels), nn.SiLU())
        self.proj = nn.Sequential(norm_layer(channels), nn.Conv2d(channels, both, 1))
        self.dwconv2 = ResDWConv(both)
        self.norm2 = ChannelNorm(both)
        self.mlp = nn.Sequential(*_mlp(both, int(channels * mlp_ratio), both))
        self.ls1 = _scale(both, ls_init_value)
        self.ls2 = _scale(both, ls_init_value)
        self.drop_path = DropPath(drop_path)
        for i, kernel in enumerate(self.kernel_sizes):
            self.register_parameter(f'rpb{i + 1}',
                                    nn.Parameter(torch.zeros(self.num_heads, 2 * kernel - 1, 2 * kernel - 1)))

    def _weights(self, x: Tensor) -> List[Tensor]:
        """Returns the weights of both convolutions, (N, g, H, W, k * k), for x and h together, (N, C, H, W)."""
        height, width = x.shape[2:]
        query, key = (_laid_out(part, x) for part in x.split(self.split, 1))
        query, key = (part.flatten(2).unflatten(1, (self.num_heads, -1))
                      for part in (self.weight_query(query) * self.scale, self.weight_key(key)))
        similarity = _laid_out((query.mT @ key).permute(0, 3, 1, 2), x)  # (N, 49, g, H * W)
        weights = self.weight_proj(similarity).permute(0, 2, 3, 1).unflatten(2, (height, width))
        biases = (_position_bias(table, height, width).flatten(3) for table in (self.rpb1, self.rpb2))
        parts = weights.split([kernel**2 for kernel in self.kernel_sizes], -1)
        return [(part + bias).softmax(-1) for part, bias in zip(parts, biases)]

    def _mix(self, x: Tensor, both: Tensor) -> Tensor:
        """Returns the dynamic convolutions of x, (N, channels, H, W), with weights from ``both``, x and h together."""
        size = x.shape[2], x.shape[3]
        larger = _enlarged(size[0], size[1], self.kernel_sizes[1])
        resized = symbolic(*size) or larger != size
        if resized:
            x, both = (F.interpolate(t, larger, mode='bilinear', align_corners=False) for t in (x, both))
        values = x.unflatten(1, (2, self.num_heads, -1)).permute(1, 0, 2, 4, 5, 3)  # (2, N, g, H, W, C)
        mixed = [neighborhood_av(weights, part, kernel)
                 for weights, part, kernel in zip(self._weights(both), values, self.kernel_sizes)]
        out = torch.cat(mixed, 1).permute(0, 2, 3, 1, 4).flatten(3).permute(0, 3, 1, 2)
        out = _laid_out(out, x)
        return F.adaptive_avg_pool2d(out, size) if resized else out

    def forward(self, x: Tensor, h: Tensor, overview: Tensor) -> Tensor:
        if 'x_scale' in self._modules:
            h = self.x_scale(h) + self.h_scale(overview)
        shortcut = self.dwconv1(torch.cat([x, h], 1))
        both = self.norm1(shortcut)
        x = self.fusion(both)
        out = self.dyconv_proj(self._mix(x, both)) + self.lepe(x)
        out = self.proj(self.gate(x) * self.se_layer(out))
        x = self.dwconv2(self._add(shortcut, out, self.ls1))
        return self._add(x, self.mlp(self.norm2(x)), self.ls2)

    def _add(self, x: Tensor, branch: Tensor, scale: nn.Module) -> Tensor:
        if self.res_scale:
            return scale(x) + self.drop_path(branch)
        return x + self.drop_path(scale(branch))


class CTXDownsample(nn.Module):
    """Halves the map and the context, each by a 3x3 convolution with a norm."""

    def __init__(self, channels: int, out_channels: int, norm_layer: NormLayer):
        super().__init__()
        context = out_channels // 4
        self.x_proj = _halve(channels, out_channels, norm_layer)
        self.h_proj = _halve(context, context, norm_layer)

    def forward(self, x: Tensor, h: Tensor) -> Tuple[Tensor, Tensor]:
        return self.x_proj(x), self.h_proj(h)


def _conv(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)


def _halve(in_channels: int, out_channels: int, norm_layer: NormLayer) -> nn.Sequential:
    return nn.Sequential(_conv(in_channels, out_channels, 2), norm_layer(out_channels))


def _stem(in_channels: int, channels: int, norm_layer: NormLayer) -> nn.Sequential:
    half = channels // 2
    return nn.Sequential(
        _conv(in_channels, half, 2), norm_layer(half), nn.GELU(), _conv(half, half, 1), norm_layer(half), nn.GELU(),
        _conv(half, channels, 2), norm_layer(channels), nn.GELU(), _conv(channels, channels, 1), norm_layer(channels))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@MODELS.register_module()
class OverLoCK(BaseBackbone):
    """OverLoCK as a feature extractor, with a norm on each returned map. That of the second map is also on the way to
    the third stage, as in the official dense prediction.

    The third stage has three parts: the Base-Net, the Overview-Net, which is at the stride of the fourth stage, and the
    Focus-Net, which takes the maps of both. The Focus-Net continues in the fourth stage.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``depth``, ``embed_dim``, ``kernel_size`` and ``mlp_ratio`` (one per
            stage, the fourth for the Overview-Net and, but for the depth and the MLP, the Focus-Net), ``sub_depth``,
            ``sub_num_heads`` and ``sub_mlp_ratio`` (of the Focus-Net in its two stages), and optionally
            ``ls_init_value`` (per stage, None for no layer scale), ``res_scale`` (whether layer scale is applied to the
            shortcut) and ``smk_size`` (the smaller window of dynamic convolutions).
        detection: If True, the map of the Overview-Net is added to the last map, through a norm, a 1x1 convolution and
            layer scale, as in the official detectors.
        norm_cfg: Norm layer config of the blocks; SyncBN in the official dense prediction. LayerNorms stay.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, C, ceil(H / s), ceil(W / s)), s = 4, 8, 16, 32. C is
        ``embed_dim[i]``, and ``embed_dim[3] // 4`` more in the third and the fourth stage. H and W may have any value.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    optional_weights = ('extra_norm.*', 'h_proj.*')

    def __init__(self, arch: Arch = 'T', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 detection: bool = False, drop_path_rate: float = 0.0, frozen_stages: int = -1,
                 norm_cfg: dict = dict(type='BN'), norm_eval: bool = False, with_cp: bool = False,
                 merged: bool = False, init_cfg: Optional[dict] = None):
        full = _complete(arch)
        dims, depth, sub_depth = full['embed_dim'], full['depth'], full['sub_depth']
        context = dims[3] // 4
        out_channels = [*dims[:2], dims[2] + context, dims[3] + context]
        super().__init__(out_channels, in_channels=in_channels, out_indices=out_indices, drop_path_rate=drop_path_rate,
                         frozen_stages=frozen_stages, norm_cfg=norm_cfg, norm_eval=norm_eval, with_cp=with_cp,
                         merged=merged, init_cfg=init_cfg)
        check_flags(dict(detection=detection), 'detection')
        self.detection = detection
        self._depths = dict(zip(('blocks1', 'blocks2', 'blocks3', 'blocks4', 'sub_blocks3', 'sub_blocks4'),
                                (*depth, *sub_depth)))
        norm_layer, focus = self.norm_layer, self.num_stages > 2  # the third stage needs the Overview-Net
        rates = torch.linspace(0, drop_path_rate, sum(depth) + sum(sub_depth), device='cpu').tolist()

        def blocks(stage: int) -> nn.ModuleList:
            return nn.ModuleList(
                RepConvBlock(dims[stage], full['kernel_size'][stage], full['mlp_ratio'][stage],
                             full['ls_init_value'][stage], full['res_scale'], rates[sum(depth[:stage]) + i], norm_layer,
                             merged)
                for i in range(depth[stage]))

        def sub_blocks(stage: int) -> nn.ModuleList:
            sub = stage - 2
            return nn.ModuleList(
                DynamicConvBlock(dims[stage], context, full['kernel_size'][stage], full['smk_size'],
                                 full['sub_num_heads'][sub], full['sub_mlp_ratio'][sub], full['ls_init_value'][stage],
                                 full['res_scale'], rates[sum(depth) + sum(sub_depth[:sub]) + i], norm_layer, merged,
                                 first=stage == 2 and i == 0)
                for i in range(sub_depth[sub]))

        for stage in range(4 if focus else self.num_stages):
            self.add_module(f'patch_embed{stage + 1}', _halve(dims[stage - 1], dims[stage], norm_layer) if stage else
                            _stem(in_channels, dims[0], norm_layer))
            self.add_module(f'blocks{stage + 1}', blocks(stage))
        if focus:
            self.high_level_proj = nn.Conv2d(dims[3], context, 1)
            self.sub_blocks3 = sub_blocks(2)
        if self.num_stages > 3:
            self.patch_embedx = CTXDownsample(dims[2], dims[3], norm_layer)
            self.sub_blocks4 = sub_blocks(3)
        normed = sorted({*self.out_indices, 1} if focus else self.out_indices)
        self.extra_norm = nn.ModuleDict({str(i): ChannelNorm(out_channels[i]) for i in normed})
        if self._adds_overview:
            self.extra_norm['4'] = ChannelNorm(dims[3])
            self.h_proj = nn.Sequential(nn.Conv2d(dims[3], out_channels[3], 1), LayerScale(out_channels[3], 1e-5))
        self.apply(_init)
        self.finish()

    @property
    def _adds_overview(self) -> bool:
        return self.detection and 3 in self.out_indices

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        maps = {0: self._stage(0, x)}
        if self.num_stages > 1:
            maps[1] = self._stage(1, maps[0])
        if self.num_stages > 2:
            maps[1] = self.extra_norm['1'](maps[1])
            x = self._stage(2, maps[1])
            overview = self._stage(3, x)
            small = self.high_level_proj(overview)
            large = h = F.interpolate(small, size=x.shape[2:], mode='bilinear', align_corners=False)
            for block in self.sub_blocks3:
                both = self.run(block, x, h, large)
                x, h = both.split(block.split, 1)
            maps[2] = both
        if self.num_stages > 3:
            x, h = self.run(self.patch_embedx, x, h)
            for block in self.sub_blocks4:
                both = self.run(block, x, h, small)
                x, h = both.split(block.split, 1)
            maps[3] = both
        for i in self.out_indices:
            if i != 1 or self.num_stages == 2:  # else it is normed already
                maps[i] = self.extra_norm[str(i)](maps[i])
        if self._adds_overview:
            maps[3] = maps[3] + self.h_proj(self.extra_norm['4'](overview))
        return tuple(maps[i] for i in self.out_indices)

    def _stage(self, stage: int, x: Tensor) -> Tensor:
        """Runs the downsampling and the blocks of a stage of the Base-Net, or of the Overview-Net (3)."""
        x = self.run(self._modules[f'patch_embed{stage + 1}'], x)
        for block in self._modules[f'blocks{stage + 1}']:
            x = self.run(block, x)
        return x

    def parts(self, stage_id: int) -> List[nn.Module]:
        names = (('patch_embed1', ), ('blocks1', ), ('patch_embed2', 'blocks2'),
                 ('patch_embed3', 'blocks3', 'patch_embed4', 'blocks4', 'high_level_proj', 'sub_blocks3'),
                 ('patch_embedx', 'sub_blocks4', *(('h_proj', ) if self._adds_overview else ())))[stage_id]
        norms = {0: (), 4: ('3', '4')}.get(stage_id, (str(stage_id - 1), ))
        return [*(self._modules[name] for name in names),
                *(self.extra_norm[name] for name in norms if name in self.extra_norm)]

    def leaves_out(self, name: str) -> bool:
        if not self.detection and 3 in self.out_indices and name.startswith(('h_proj.', 'extra_norm.4.')):
            return False  # of a trained detector, which computes another last map
        return super().leaves_out(name)

    def no_weight_decay(self) -> Set[str]:
        return {name for name, p in self.named_parameters()
                if p.dim() > 1 and name.endswith(('.rpb1', '.rpb2', '.gamma', '.beta', '_scale.weight', '.ls.weight',
                                                  '.ls1.weight', '.ls2.weight', 'h_proj.1.weight'))}

    @property
    def num_layers(self) -> int:
        return sum(self._depths.values())

    def layer_of(self, name: str) -> int:
        """Returns the layer id of a parameter: the number of its block, in the order in which blocks are computed.

        The official code has no layer-wise decay. Downsampling has the id of the block after it. Norms of the returned
        maps and what adds the overview to the last of them have the id of a head.
        """
        part, index, *_ = name.split('.')
        if part in ('extra_norm', 'h_proj'):
            return self.num_layers + 1
        if part == 'patch_embed1':
            return 0
        if part not in self._depths:
            part, index = {'high_level_proj': 'sub_blocks3', 'patch_embedx': 'sub_blocks4'}.get(
                part, part.replace('patch_embed', 'blocks')), '0'
        names = list(self._depths)
        return sum(self._depths[before] for before in names[:names.index(part)]) + int(index) + 1
