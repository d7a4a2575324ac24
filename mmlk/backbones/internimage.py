"""InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions, Wang et al., CVPR 2023,
arXiv:2211.05778.

Official code: https://github.com/OpenGVLab/InternImage (MIT). Parameter names are the official ones.
"""
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from mmlk.layers import ChannelNorm
from mmlk.ops import DepthwiseConv2d, dcnv3
from mmlk.registry import MODELS
from mmlk.reparam.branches import NormLayer

from .base import (
    Arch,
    BaseBackbone,
    check_flags,
    check_not_negative,
    check_per_stage,
    check_positive,
    is_integer,
    is_number,
    resolve_arch,
)


def arch_of(channels: int, depths: Sequence[int], groups: int, **other: Any) -> Dict[str, Any]:
    """Returns an arch whose groups, like the channels, double with each stage."""
    return dict(channels=channels, depths=tuple(depths), groups=tuple(groups * 2**stage for stage in range(4)),
                layer_scale=1.0, **other)


# From the official segmentation and detection configs. Those of the classifiers begin with other values of layer scale
# (1e-5), and the one of T has none.
ARCHS = {
    'T': arch_of(64, (4, 4, 18, 4), 4),
    'S': arch_of(80, (4, 4, 21, 4), 5, post_norm=True),
    'B': arch_of(112, (4, 4, 21, 4), 7, post_norm=True),
    'L': arch_of(160, (5, 5, 22, 5), 10, post_norm=True, offset_scale=2.0),
    'XL': arch_of(192, (5, 5, 24, 5), 12, post_norm=True, offset_scale=2.0),
}

_REQUIRED = ('channels', 'depths', 'groups')
DEFAULTS = dict(mlp_ratio=4.0, layer_scale=None, offset_scale=1.0, post_norm=False, dw_kernel_size=None,
                level2_post_norm=False, level2_post_norm_block_ids=None, res_post_norm=False,
                center_feature_scale=False)
_TAPS = 9
_LEVEL2 = 2  # the level that level2_post_norm is about, counted from 0


def complete_arch(arch: Arch, archs: Dict[str, Dict[str, Any]], defaults: Dict[str, Any],
                  family: str) -> Dict[str, Any]:
    """Checks an arch of the family, and returns it as a dict with all default values.

    Args:
        arch: A name in ``archs``, or a dict.
        archs: The settings of the named archs.
        defaults: Default values of the keys that a dict may lack.
        family: Name of the family, for messages.

    Raises:
        ValueError: A value is not valid; the message says which one and what is allowed.
    """
    full = resolve_arch(arch, archs, _REQUIRED, defaults, family)
    check_per_stage(full, 'depths', 'groups')
    check_positive({**full, 'channels': (full['channels'], )}, 'channels', 'depths', 'groups')
    check_flags(full, 'post_norm', 'level2_post_norm', 'res_post_norm', 'center_feature_scale')
    if full['channels'] % 2:
        raise ValueError(f"channels must be even, as the stem begins with half of them, got {full['channels']}")
    for stage, groups in enumerate(full['groups']):
        if full['channels'] * 2**stage % groups:
            raise ValueError(f"groups must divide the channels of their stage, got {tuple(full['groups'])} for "
                             f"{full['channels']} channels that double with each stage")
    for key in ('mlp_ratio', 'offset_scale'):
        if not is_number(full[key]) or full[key] <= 0:
            raise ValueError(f'{key} must be a positive number, got {full[key]!r}')
    if int(full['channels'] * full['mlp_ratio']) < 1:
        raise ValueError(f"mlp_ratio {full['mlp_ratio']} leaves no channels")
    if full['layer_scale'] is not None:
        check_not_negative(full, 'layer_scale')
    kernel = full['dw_kernel_size']
    if kernel is not None and not (is_integer(kernel) and kernel > 0 and kernel % 2):
        raise ValueError(f'dw_kernel_size must be None or odd and positive, got {kernel!r}')
    if full['res_post_norm'] and (full['post_norm'] or full['layer_scale'] is not None):
        raise ValueError('res_post_norm excludes post_norm and layer_scale: the official code then ignores it')
    ids = full['level2_post_norm_block_ids']
    if full['level2_post_norm']:
        blocks = full['depths'][_LEVEL2] if len(full['depths']) > _LEVEL2 else 0
        indices = isinstance(ids, (list, tuple)) and all(is_integer(i) and 0 <= i < blocks for i in ids)
        if not indices or not ids or len(set(ids)) != len(ids):
            raise ValueError(f'level2_post_norm needs level2_post_norm_block_ids, different indices of the {blocks} '
                             f'blocks of the third stage, got {ids!r}')
    elif ids is not None:
        raise ValueError('level2_post_norm_block_ids have an effect with level2_post_norm=True only')
    return full


class DCNv3(nn.Module):
    """Deformable convolution v3 between two linear layers; section 3.1 of the paper.

    A depthwise convolution and linear layers compute offsets and weights of 3x3 samples for each group of channels. The
    weights are softmaxed over the samples.

    Args:
        channels: Number of channels of the map.
        groups: Number of groups of channels, each of which has its own offsets and weights.
        offset_scale: Factor of the offsets and of the distances of the samples.
        dw_kernel_size: Size of the depthwise convolution.
        center_feature_scale: Whether the result is mixed with the projected input, by a share per group and pixel.
        norm_layer: Makes the norm after the depthwise convolution.

    Shape:
        Input: (N, C, H, W). Output: (N, H, W, C).
    """

    def __init__(self, channels: int, groups: int, offset_scale: float, dw_kernel_size: int,
                 center_feature_scale: bool, norm_layer: NormLayer):
        super().__init__()
        self.groups, self.offset_scale = groups, offset_scale
        self.dw_conv = nn.Sequential(DepthwiseConv2d(channels, dw_kernel_size), _after_identity(norm_layer(channels)),
                                     nn.GELU())
        self.offset = nn.Linear(channels, groups * _TAPS * 2)
        self.mask = nn.Linear(channels, groups * _TAPS)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(groups, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(groups))
        self.center_feature_scale = center_feature_scale

    def reset_parameters(self) -> None:
        """Sets the initial values: at first all samples lie on the grid and have the same weight."""
        for layer in (self.offset, self.mask, self.input_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.mask.weight)
        nn.init.xavier_uniform_(self.input_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        values = self.input_proj(x.permute(0, 2, 3, 1))
        query = self.dw_conv(x).permute(0, 2, 3, 1)
        mask = self.mask(query).unflatten(-1, (self.groups, _TAPS)).softmax(-1).flatten(-2)
        out = dcnv3(values, self.offset(query), mask, groups=self.groups, offset_scale=self.offset_scale)
        if self.center_feature_scale:
            share = F.linear(query, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias)
            share = share.sigmoid().unsqueeze(-1)
            out, values = (t.unflatten(-1, (self.groups, -1)) for t in (out, values))
            out = (out * (1 - share) + values * share).flatten(-2)
        return self.output_proj(out)


class MLP(nn.Module):
    """Two linear layers with GELU between.

    Args:
        channels: Number of input and output channels.
        hidden_channels: Number of channels between the layers.
        bias: Whether the second layer has a bias.
    """

    def __init__(self, channels: int, hidden_channels: int, bias: bool = True):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_channels, channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def _after_identity(norm: nn.Module) -> nn.Sequential:
    """Returns the norm under the index 1: in the official code a change of layout has the index 0."""
    return nn.Sequential(nn.Identity(), norm)


def _layer_norm(channels: int) -> nn.Sequential:
    """Returns a norm of (N, H, W, C) under the index 0."""
    return nn.Sequential(nn.LayerNorm(channels, eps=1e-6))


def _channel_norm(channels: int) -> nn.Sequential:
    """Returns a norm of (N, C, H, W) under the index 0."""
    return nn.Sequential(ChannelNorm(channels, eps=1e-6))


class Block(nn.Module):
    """The block of InternImage: DCNv3 with a shortcut, then an MLP with a shortcut.

    The norm is before each of the two; with ``post_norm`` it is after it, and with ``res_post_norm`` there are both.

    Args:
        channels: Number of channels of the map.
        dcn: The token mixer.
        arch: The complete arch.
        drop_path: Drop rate of stochastic depth.

    Shape:
        Input and output: (N, C, H, W).
    """

    def __init__(self, channels: int, dcn: nn.Module, arch: Dict[str, Any], drop_path: float):
        super().__init__()
        self.post_norm, self.res_post_norm = arch['post_norm'], arch['res_post_norm']
        self.norm1 = _layer_norm(channels) if self.post_norm else _channel_norm(channels)
        self.dcn = dcn
        self.drop_path = DropPath(drop_path)
        self.norm2 = _layer_norm(channels)
        self.mlp = MLP(channels, int(channels * arch['mlp_ratio']), arch.get('mlp_fc2_bias', True))
        scale = arch['layer_scale']
        self.gamma1, self.gamma2 = (None if scale is None else nn.Parameter(torch.full((channels, ), float(scale)))
                                    for _ in range(2))
        if self.res_post_norm:
            self.res_post_norm1, self.res_post_norm2 = _layer_norm(channels), _layer_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm1(self.dcn(x)) if self.post_norm else self.dcn(self.norm1(x))
        if self.res_post_norm:
            out = self.res_post_norm1(out)
        x = self._sum(x, out, self.gamma1)
        pixels = x.permute(0, 2, 3, 1)
        out = self.norm2(self.mlp(pixels)) if self.post_norm else self.mlp(self.norm2(pixels))
        if self.res_post_norm:
            out = self.res_post_norm2(out)
        return self._sum(x, out, self.gamma2)

    def _sum(self, x: Tensor, out: Tensor, gamma: Optional[Tensor]) -> Tensor:
        if gamma is not None:
            out = gamma * out
        return x + self.drop_path(out.permute(0, 3, 1, 2))


class Stem(nn.Module):
    """Two 3x3 convolutions with stride 2, each with a norm, and GELU between.

    Args:
        in_channels: Number of channels of the image.
        channels: Number of channels of the map.
        norm_layer: Makes the norms.
    """

    def __init__(self, in_channels: int, channels: int, norm_layer: NormLayer):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1)
        self.norm1 = _after_identity(norm_layer(channels // 2))
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = _after_identity(norm_layer(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))


class Downsampling(nn.Module):
    """A 3x3 convolution with stride 2 that doubles the channels, and a norm.

    Args:
        channels: Number of input channels.
        norm_layer: Makes the norm.
    """

    def __init__(self, channels: int, norm_layer: NormLayer):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = _after_identity(norm_layer(2 * channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Level(nn.Module):
    """A stage of InternImage: blocks, norms, and the downsampling after it.

    Args:
        blocks: The blocks.
        norm: The norm of the map, which the next stage takes too; None for no norm.
        post_norms: Norms after blocks, by the index of the block.
        downsample: The downsampling before the next stage; None after the last one.
    """

    def __init__(self, blocks: Sequence[nn.Module], norm: Optional[nn.Module], post_norms: Dict[int, nn.Module],
                 downsample: Optional[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.post_norms = nn.ModuleList(post_norms.values()) if post_norms else None
        self.downsample = downsample
        self._norm_after = {block: index for index, block in enumerate(post_norms)}

    def norm_after(self, block: int) -> Optional[nn.Module]:
        """Returns the norm after a block, or None."""
        return self.post_norms[self._norm_after[block]] if block in self._norm_after else None


@MODELS.register_module()
class InternImage(BaseBackbone):
    """InternImage as a feature extractor.

    It takes images of any size. The memory of the samples of its operator is bounded; see :func:`mmlk.ops.dcnv3`.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``channels`` (of the first stage, which double with each), ``depths``
            and ``groups`` (one per stage), and optionally ``mlp_ratio``, ``layer_scale`` (its initial value; None: no
            layer scale), ``offset_scale``, ``post_norm`` (norms after the layers of a block in place of before, and
            none at the end of a stage), and those of InternImage-H and -G: ``dw_kernel_size`` (3 by default),
            ``level2_post_norm`` with ``level2_post_norm_block_ids`` (norms after these blocks of the third stage),
            ``res_post_norm`` (norms after the layers too) and ``center_feature_scale``.
        norm_cfg: Norm layer config of the norms in the stem, in the downsampling and after the depthwise convolutions;
            None for LayerNorm over the channels, as officially. The others are LayerNorms: published weights hold no
            other.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, channels * 2**i, ceil(H / s), ceil(W / s)), s = 4, 8, 16,
        32.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    def __init__(self, arch: Arch = 'T', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: Optional[dict] = None,
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        full = self.complete(arch)
        depths = full['depths']
        widths = [full['channels'] * 2**stage for stage in range(len(depths))]
        if norm_cfg is None:
            norm_cfg = dict(type=ChannelNorm, eps=1e-6)
        super().__init__(widths, in_channels=in_channels, out_indices=out_indices, drop_path_rate=drop_path_rate,
                         frozen_stages=frozen_stages, norm_cfg=norm_cfg, norm_eval=norm_eval, with_cp=with_cp,
                         merged=merged, init_cfg=init_cfg)
        # the classifier of T was trained without layer scale, which is a layer scale of 1
        if full['layer_scale'] == 1:
            self.optional_weights = ('levels.*.gamma[12]', )
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        self.patch_embed = Stem(in_channels, widths[0], self.norm_layer)
        self.levels = nn.ModuleList(self._level(full, stage, widths[stage], rates) for stage in range(self.num_stages))
        self.apply(_init)
        for level in self.levels:
            for block in level.blocks:
                block.dcn.reset_parameters()
        self.finish()

    @staticmethod
    def complete(arch: Arch) -> Dict[str, Any]:
        """Checks the arch and returns it as a dict with all default values."""
        return complete_arch(arch, ARCHS, DEFAULTS, 'InternImage')

    def _level(self, arch: Dict[str, Any], stage: int, channels: int, rates: Any) -> Level:
        blocks = [Block(channels, self.mixer(arch, stage, channels), arch, next(rates))
                  for _ in range(arch['depths'][stage])]
        normed = not arch['post_norm'] or arch['center_feature_scale']
        ids = arch['level2_post_norm_block_ids'] if arch['level2_post_norm'] and stage == _LEVEL2 else ()
        return Level(blocks, _channel_norm(channels) if normed else None, {i: _channel_norm(channels) for i in ids},
                     Downsampling(channels, self.norm_layer) if stage + 1 < self.num_stages else None)

    def mixer(self, arch: Dict[str, Any], stage: int, channels: int) -> nn.Module:
        """Returns the token mixer of a block of a stage."""
        return DCNv3(channels, arch['groups'][stage], arch['offset_scale'], arch['dw_kernel_size'] or 3,
                     arch['center_feature_scale'], self.norm_layer)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        maps = []
        x = self.patch_embed(x)
        for level in self.levels:
            for index, block in enumerate(level.blocks):
                x = self.run(block, x)
                norm = level.norm_after(index)
                if norm is not None:
                    x = norm(x)
            if level.norm is not None:
                x = level.norm(x)
            maps.append(x)
            if level.downsample is not None:
                x = level.downsample(x)
        return tuple(maps[i] for i in self.out_indices)

    def parts(self, stage_id: int) -> List[nn.Module]:
        if stage_id == 0:
            return [self.patch_embed]
        before = [self.levels[stage_id - 2].downsample] if stage_id > 1 else []
        level = self.levels[stage_id - 1]
        own = (level.blocks, level.norm, level.post_norms)
        return [part for part in (*before, *own) if part is not None]

    @property
    def num_layers(self) -> int:
        return sum(len(level.blocks) for level in self.levels)

    def layer_of(self, name: str) -> int:
        """Returns the layer id of a parameter, as ``custom_layer_decay_optimizer_constructor.py`` of the official code.

        Each block is a layer. The norm at the end of a stage and the downsampling after it have the id of the next
        stage's first block; the norm at the end of the last stage has that of this stage's first block.
        """
        kind, *rest = name.split('.')
        if kind == 'patch_embed':
            return 0
        stage, part = int(rest[0]), rest[1]
        ends = [sum(len(level.blocks) for level in self.levels[:count]) for count in range(self.num_stages + 1)]
        if part in ('downsample', 'norm'):
            return 1 + ends[min(stage + 1, self.num_stages - 1)]
        return 1 + ends[stage] + int(rest[2])


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
