"""GFNet: Global Filter Networks for Image Classification, Rao et al., NeurIPS 2021, arXiv:2107.00645.

Only the hierarchical variants are here. Official code: https://github.com/raoyongming/GFNet (MIT). Parameter names are
the official ones. The official code classifies images of one fixed size; code for dense prediction was not published.
:mod:`mmlk.ops.global_filter` explains the operator.
"""
import math
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from mmlk.layers import ChannelNorm
from mmlk.ops.global_filter import global_filter2d, spectrum_size
from mmlk.ops.layout import symbolic
from mmlk.registry import MODELS

from .base import (Arch, BaseBackbone, check_flags, check_not_negative, check_per_stage, check_positive, is_integer,
                   is_number, resolve_arch)


def _arch(third_stage: int, width: int, init_values: float) -> Dict[str, Any]:
    return dict(embed_dim=tuple(width * 2**stage for stage in range(4)), depth=(3, 3, third_stage, 3),
                init_values=init_values)


# from main_gfnet.py of the official code
ARCHS = {
    'H-Ti': _arch(10, 64, 1e-3),
    'H-S': _arch(10, 96, 1e-5),
    'H-B': _arch(27, 96, 1e-6),
}

_DEFAULTS = dict(mlp_ratio=None, img_size=224, init_values=1e-3, no_layerscale=False)
_REQUIRED = ('embed_dim', 'depth')


def _complete(arch: Arch) -> Dict[str, Any]:
    """Checks the arch and returns it as a dict with all default values."""
    full = resolve_arch(arch, ARCHS, _REQUIRED, _DEFAULTS, 'GFNet')
    check_per_stage(full, *_REQUIRED)
    check_positive(full, *_REQUIRED)
    if full['mlp_ratio'] is None:
        full['mlp_ratio'] = (4, ) * len(full['depth'])
    check_per_stage(full, 'mlp_ratio', *_REQUIRED)
    for ratio, channels in zip(full['mlp_ratio'], full['embed_dim']):
        if not is_number(ratio) or int(channels * ratio) < 1:
            raise ValueError(f'mlp_ratio {ratio!r} leaves no channels')
    check_flags(full, 'no_layerscale')
    if not full['no_layerscale']:
        check_not_negative(full, 'init_values')
    if not is_integer(full['img_size']) or _side(full['img_size'], len(full['depth']) - 1) < 1:
        raise ValueError(f"img_size must be at least {4 * 2**(len(full['depth']) - 1)}, got {full['img_size']!r}")
    return full


def _side(img_size: int, stage: int) -> int:
    """Returns the height and width of a stage's map for a square image."""
    return img_size // (4 * 2**stage)


class GlobalFilter(nn.Module):
    """Multiplies the spectrum of each channel by a learned filter (:func:`mmlk.ops.global_filter2d`).

    The state dict key is the official one: ``complex_weight`` (h, w, C, 2), with the real and the imaginary part of the
    half spectrum for the map size of training.

    Args:
        channels: Number of channels of the map.
        size: Height and width of the map to train on.

    Shape:
        Input and output: (N, C, H, W). For sizes other than ``size``, the filter is resized.
    """

    def __init__(self, channels: int, size: Tuple[int, int]):
        super().__init__()
        self.complex_weight = nn.Parameter(0.02 * torch.randn(*spectrum_size(size), channels, 2))

    def forward(self, x: Tensor) -> Tensor:
        return global_filter2d(x, self.complex_weight.permute(2, 0, 1, 3))


class PatchEmbed(nn.Module):
    """A convolution with equal kernel size and stride, which maps each patch to one vector."""

    def __init__(self, in_channels: int, channels: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Block(nn.Module):
    """The block of GFNet, figure 1 of the paper: norm, global filter, norm, MLP, with one shortcut around all.

    Args:
        channels: Number of channels of the map.
        size: Height and width of the map to train on.
        mlp_ratio: Number of hidden channels of the MLP divided by ``channels``.
        drop_path: Drop rate of stochastic depth.
        init_values: Initial value of layer scale; None for no layer scale.
    """

    def __init__(self, channels: int, size: Tuple[int, int], mlp_ratio: float, drop_path: float,
                 init_values: Optional[float]):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.filter = GlobalFilter(channels, size)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.gamma = None if init_values is None else nn.Parameter(torch.full((channels, ), float(init_values)))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm1(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        out = self.mlp(self.norm2(self.filter(out).permute(0, 2, 3, 1)))
        if self.gamma is not None:
            out = self.gamma * out
        return x + self.drop_path(out.permute(0, 3, 1, 2))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


@MODELS.register_module()
class GFNet(BaseBackbone):
    """Hierarchical GFNet as a feature extractor at any size, with a norm on each returned map.

    Filters and position embedding are made for images of ``img_size``. For other sizes they are interpolated in each
    forward pass: filters bilinearly with aligned corners, as the authors do in HorNet, and the position embedding
    bicubically. (The official classifier interpolates both bicubically, once, when it is fine-tuned for larger images.)
    The norms of the returned maps are those of HorNet. GFNet's own ``norm``, before the average pooling of its
    classifier, is not used. The position embedding has no weight decay, as officially.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``embed_dim`` and ``depth`` (one per stage) and optionally
            ``mlp_ratio`` (one per stage; 4 each), ``img_size`` (side of the image whose maps the filters and the
            position embedding fit), ``init_values`` (initial layer scale) and ``no_layerscale``.
        frozen_stages: As in :class:`BaseBackbone`; the position embedding belongs to the stem.
        norm_cfg: Norm layer config of the norms on the returned maps; None for LayerNorm over the channels. The others
            are LayerNorms: published weights hold no other.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, embed_dim[i], H // s, W // s), s = 4, 8, 16, 32. Rows and
        columns that do not fill a patch are cropped. H and W must be at least the s of the last stage.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    optional_weights = ('norm[0-9].*', )

    def __init__(self, arch: Arch = 'H-Ti', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: Optional[dict] = None,
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        full = _complete(arch)
        channels, depth, img_size = full['embed_dim'], full['depth'], full['img_size']
        if norm_cfg is None:
            norm_cfg = dict(type=ChannelNorm, eps=1e-6)
        super().__init__(channels, in_channels=in_channels, out_indices=out_indices, drop_path_rate=drop_path_rate,
                         frozen_stages=frozen_stages, norm_cfg=norm_cfg, norm_eval=norm_eval, with_cp=with_cp,
                         merged=merged, init_cfg=init_cfg)
        rates = torch.linspace(0, drop_path_rate, sum(depth), device='cpu').tolist()
        init_values = None if full['no_layerscale'] else full['init_values']
        self.pos_embed = nn.Parameter(torch.empty(1, _side(img_size, 0)**2, channels[0]))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.patch_embed, self.blocks = nn.ModuleList(), nn.ModuleList()
        for i in range(self.num_stages):
            before, patch = (channels[i - 1], 2) if i else (in_channels, 4)
            self.patch_embed.append(PatchEmbed(before, channels[i], patch))
            size, first = (_side(img_size, i), ) * 2, sum(depth[:i])
            self.blocks.append(nn.ModuleList(
                Block(channels[i], size, full['mlp_ratio'][i], rate, init_values)
                for rate in rates[first:first + depth[i]]))
        for i in sorted(self.out_indices):
            self.add_module(f'norm{i}', self.norm_layer(channels[i]))
        self.apply(_init)
        self.finish()

    def finish(self) -> None:
        super().finish()
        self.pos_embed.requires_grad_(self.frozen_stages < 0)

    def _positions(self, size: Tuple[int, int]) -> Tensor:
        """Returns the position embedding, interpolated to (1, C, *size) if needed."""
        _, count, channels = self.pos_embed.shape
        side = math.isqrt(count)
        grid = self.pos_embed.reshape(1, side, side, channels).permute(0, 3, 1, 2)
        if not symbolic(*size) and size == (side, side):
            return grid
        dtype = torch.promote_types(grid.dtype, torch.float32)
        return F.interpolate(grid.to(dtype), size, mode='bicubic', align_corners=False).to(grid.dtype)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        maps = {}
        for i, (embed, blocks) in enumerate(zip(self.patch_embed, self.blocks)):
            x = embed(x)
            if i == 0:
                x = x + self._positions(tuple(x.shape[2:]))
            for block in blocks:
                x = self.run(block, x)
            if i in self.out_indices:
                maps[i] = self._modules[f'norm{i}'](x)
        return tuple(maps[i] for i in self.out_indices)

    def parts(self, stage_id: int) -> List[nn.Module]:
        return self._opened_parts(stage_id, self.patch_embed, self.blocks)

    def stage_id(self, name: str) -> int:
        return 0 if name == 'pos_embed' else super().stage_id(name)

    def no_weight_decay(self) -> Set[str]:
        return {'pos_embed'}

    @property
    def num_layers(self) -> int:
        return sum(map(len, self.blocks))

    def layer_of(self, name: str) -> int:
        """Returns the layer id of a parameter. The official code has no layer-wise learning rate decay.

        Each block is a layer, as in a transformer. Downsampling has the id of the block after it, the position
        embedding that of the stem. The norms of the outputs, which are not pretrained, have the id of a head,
        ``num_layers + 1``.
        """
        kind, *rest = name.split('.')
        if kind == 'pos_embed' or name.startswith('patch_embed.0.'):
            return 0
        if kind in ('patch_embed', 'blocks'):
            block = int(rest[1]) if kind == 'blocks' else 0
            return sum(map(len, self.blocks[:int(rest[0])])) + 1 + block
        return self.num_layers + 1
