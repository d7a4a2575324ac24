"""Isotropic ConvNeXt, section 3.3 of A ConvNet for the 2020s, Liu et al., CVPR 2022, arXiv:2201.03545.

Like a plain vision transformer, it has patches of 16x16 and one resolution at all depths. Official code:
https://github.com/facebookresearch/ConvNeXt, ``models/convnext_isotropic.py`` (MIT). Parameter names are the official
ones. The official code classifies; code for dense prediction was not published.
"""
import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmlk.layers import ChannelNorm
from mmlk.ops import DepthwiseConv2d
from mmlk.registry import MODELS

from .base import Arch, BaseBackbone, check_not_negative, check_positive, resolve_arch
from .convnext import Block, init_weights

# Section 3.3 and appendix A.1 of the paper: only L has layer scale
ARCHS: Dict[str, Dict[str, Any]] = {
    'S': dict(depth=18, dim=384, layer_scale_init_value=0),
    'B': dict(depth=18, dim=768, layer_scale_init_value=0),
    'L': dict(depth=36, dim=1024, layer_scale_init_value=1e-6),
}

_DEFAULTS = dict(layer_scale_init_value=0)
_REQUIRED = ('depth', 'dim')
_MAPS = 4


def _complete(arch: Arch) -> Dict[str, Any]:
    """Checks the arch and returns it as a dict with all default values."""
    full = resolve_arch(arch, ARCHS, _REQUIRED, _DEFAULTS, 'ConvNeXtIsotropic')
    check_positive({key: (full[key], ) for key in _REQUIRED}, *_REQUIRED)
    check_not_negative(full, 'layer_scale_init_value')
    if full['depth'] < _MAPS:
        raise ValueError(f"depth must be at least {_MAPS}, one block for each map, got {full['depth']}")
    return full


@MODELS.register_module()
class ConvNeXtIsotropic(BaseBackbone):
    """Isotropic ConvNeXt as a feature extractor: four maps with stride 16 from four depths, with a norm on each.

    The maps are those after each quarter of the blocks, as those of a vision transformer under UperNet. In place of a
    stage there is a quarter of the blocks. mmseg's ``Feature2Pyramid`` is a neck that brings the maps to the strides
    4, 8, 16 and 32.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``depth`` (number of blocks, at least 4) and ``dim`` (number of
            channels) and optionally ``layer_scale_init_value`` (0: no layer scale).
        norm_cfg: Norm layer config of the norms on the returned maps; None for LayerNorm over the channels. Those of
            the blocks are LayerNorms.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, dim, H // 16, W // 16). Rows and columns that do not fill
        a patch are cropped, as officially. H and W must be at least 16.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    optional_weights = ('norm[0-9].*', )

    def __init__(self, arch: Arch = 'S', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: Optional[dict] = None,
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        full = _complete(arch)
        depth, dim = full['depth'], full['dim']
        if norm_cfg is None:
            norm_cfg = dict(type=ChannelNorm, eps=1e-6)
        super().__init__((dim, ) * _MAPS, in_channels=in_channels, out_indices=out_indices,
                         drop_path_rate=drop_path_rate, frozen_stages=frozen_stages, norm_cfg=norm_cfg,
                         norm_eval=norm_eval, with_cp=with_cp, merged=merged, init_cfg=init_cfg)
        self.depth = depth
        rates = torch.linspace(0, drop_path_rate, depth, device='cpu').tolist()
        self.stem = nn.Conv2d(in_channels, dim, 16, stride=16)
        self.blocks = nn.ModuleList(
            Block('dwconv', DepthwiseConv2d(dim, 7), dim, rate, full['layer_scale_init_value'])
            for rate in rates[:self._end(self.num_stages)])
        for i in sorted(self.out_indices):
            self.add_module(f'norm{i}', self.norm_layer(dim))
        self.apply(init_weights)
        self.finish()

    def _end(self, maps: int) -> int:
        """Returns the number of blocks up to and including those of the ``maps``-th map."""
        return self.depth * maps // _MAPS

    def _blocks_of(self, stage: int) -> Sequence[nn.Module]:
        return list(self.blocks)[self._end(stage):self._end(stage + 1)]

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        maps = self.run_stages(self.stem(x), map(self._blocks_of, range(self.num_stages)))
        return tuple(self._modules[f'norm{i}'](out) for i, out in zip(self.out_indices, maps))

    def parts(self, stage_id: int) -> List[nn.Module]:
        if stage_id == 0:
            return [self.stem]
        stage = stage_id - 1
        return [*self._blocks_of(stage), *([self._modules[f'norm{stage}']] if stage in self.out_indices else [])]

    def leaves_out(self, name: str) -> bool:
        block = re.match(r'blocks\.(\d+)\.', name)  # a deeper network has more blocks, and is another one
        return super().leaves_out(name) if block is None else len(self.blocks) <= int(block[1]) < self.depth

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    def layer_of(self, name: str) -> int:
        """Returns the layer id of a parameter. The official code has no layer ids for this network.

        Each block is a layer, as in a transformer. The norms of the outputs, which are not pretrained, have the id of a
        head, ``num_layers + 1``.
        """
        kind, *rest = name.split('.')
        if kind == 'stem':
            return 0
        return int(rest[0]) + 1 if kind == 'blocks' else self.num_layers + 1
