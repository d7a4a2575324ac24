"""RepLKNet: Scaling Up Your Kernels to 31x31, Ding et al., CVPR 2022, arXiv:2203.06717.

Official code: https://github.com/DingXiaoH/RepLKNet-pytorch (MIT). Parameter names are the official ones.
"""
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mmlk.registry import MODELS
from mmlk.reparam import ConvNorm, ReparamLargeKernel
from mmlk.reparam.branches import NormLayer

from .base import (Arch, BaseBackbone, check_flags, check_kernels, check_not_negative, check_per_stage, check_positive,
                   resolve_arch)


def _arch(kernels: Sequence[int], width: int, **other) -> Dict[str, Any]:
    return dict(large_kernel_sizes=tuple(kernels), layers=(2, 2, 18, 2),
                channels=tuple(width * 2**stage for stage in range(4)), **other)


# Table 5 and appendix of the paper. XL has a norm on each output in dense prediction only (official README, tip 2).
ARCHS = {
    '31B': _arch((31, 29, 27, 13), 128, small_kernel=5),
    '31L': _arch((31, 29, 27, 13), 192, small_kernel=5),
    'XL': _arch((27, 27, 27, 13), 256, small_kernel=None, dw_ratio=1.5, norm_intermediate_features=True),
    '25': _arch((25, 25, 25, 13), 128, small_kernel=5),
    '13': _arch((13, 13, 13, 13), 128, small_kernel=5),
    '7': _arch((7, 7, 7, 7), 128, small_kernel=5),
    '3': _arch((3, 3, 3, 3), 128, small_kernel=None),
}

_DEFAULTS = dict(small_kernel=None, dw_ratio=1, ffn_ratio=4, norm_intermediate_features=False)
_REQUIRED = ('large_kernel_sizes', 'layers', 'channels')


def _complete(arch: Arch) -> Dict[str, Any]:
    """Checks the arch and returns it as a dict with all default values."""
    full = resolve_arch(arch, ARCHS, _REQUIRED, _DEFAULTS, 'RepLKNet')
    check_per_stage(full, *_REQUIRED)
    check_positive(full, *_REQUIRED)
    check_kernels(full, 'large_kernel_sizes', full['small_kernel'])
    check_not_negative(full, 'dw_ratio', 'ffn_ratio')
    check_flags(full, 'norm_intermediate_features')
    for key in ('dw_ratio', 'ffn_ratio'):
        if min(int(c * full[key]) for c in full['channels']) < 1:
            raise ValueError(f'{key} {full[key]} leaves no channels')
    return full


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, norm_layer: NormLayer, stride: int = 1,
              groups: int = 1, relu: bool = False) -> ConvNorm:
    """Returns a convolution without bias, followed by a norm and, if ``relu``, a ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return ConvNorm(conv, norm_layer(out_channels), nn.ReLU(inplace=True) if relu else None)


class RepLKBlock(nn.Module):
    """Norm, pointwise layer, large depthwise kernel, pointwise layer, and a shortcut; figure 4 of the paper."""

    def __init__(self, channels: int, dw_channels: int, kernel_size: int, small_kernel: Optional[int],
                 drop_path: float, norm_layer: NormLayer, merged: bool):
        super().__init__()
        self.prelkb_bn = norm_layer(channels)
        self.pw1 = conv_norm(channels, dw_channels, 1, norm_layer, relu=True)
        self.large_kernel = ReparamLargeKernel(dw_channels, kernel_size, small_kernel, norm_layer, merged)
        self.lk_nonlinear = nn.ReLU(inplace=True)
        self.pw2 = conv_norm(dw_channels, channels, 1, norm_layer)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out = self.lk_nonlinear(self.large_kernel(self.pw1(self.prelkb_bn(x))))
        return x + self.drop_path(self.pw2(out))


class ConvFFN(nn.Module):
    """Norm, pointwise layer, GELU, pointwise layer, and a shortcut; figure 4 of the paper."""

    def __init__(self, channels: int, hidden_channels: int, drop_path: float, norm_layer: NormLayer):
        super().__init__()
        self.preffn_bn = norm_layer(channels)
        self.pw1 = conv_norm(channels, hidden_channels, 1, norm_layer)
        self.nonlinear = nn.GELU()
        self.pw2 = conv_norm(hidden_channels, channels, 1, norm_layer)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.pw2(self.nonlinear(self.pw1(self.preffn_bn(x)))))


class Stage(nn.Module):
    """Pairs of :class:`RepLKBlock` and :class:`ConvFFN`. The norm ``norm`` is only applied to the returned map."""

    def __init__(self, blocks: List[nn.Module], norm: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm


@MODELS.register_module()
class RepLKNet(BaseBackbone):
    """RepLKNet as a feature extractor.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``large_kernel_sizes``, ``layers`` and ``channels`` (one per stage)
            and optionally ``small_kernel`` (None: no parallel small kernel), ``dw_ratio`` and ``ffn_ratio`` (number
            of hidden channels of the two kinds of block, divided by that of the stage) and
            ``norm_intermediate_features`` (a norm on each output).
        norm_cfg: Norm layer config; SyncBN in the paper.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, channels[i], ceil(H / s), ceil(W / s)), s = 4, 8, 16, 32.
        H and W may have any value.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    optional_weights = ('stages.*.norm.*', )

    def __init__(self, arch: Arch = '31B', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: dict = dict(type='BN'),
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        full = _complete(arch)
        channels, layers = full['channels'], full['layers']
        super().__init__(channels, in_channels=in_channels, out_indices=out_indices, drop_path_rate=drop_path_rate,
                         frozen_stages=frozen_stages, norm_cfg=norm_cfg, norm_eval=norm_eval, with_cp=with_cp,
                         merged=merged, init_cfg=init_cfg)
        norm_layer = self.norm_layer
        width = channels[0]
        self.stem = nn.ModuleList([
            conv_norm(in_channels, width, 3, norm_layer, stride=2, relu=True),
            conv_norm(width, width, 3, norm_layer, groups=width, relu=True),
            conv_norm(width, width, 1, norm_layer, relu=True),
            conv_norm(width, width, 3, norm_layer, stride=2, groups=width, relu=True),
        ])
        rates = torch.linspace(0, drop_path_rate, sum(layers), device='cpu').tolist()
        self.stages, self.transitions = nn.ModuleList(), nn.ModuleList()
        for i in range(self.num_stages):
            if i:
                self.transitions.append(nn.Sequential(
                    conv_norm(channels[i - 1], channels[i], 1, norm_layer, relu=True),
                    conv_norm(channels[i], channels[i], 3, norm_layer, stride=2, groups=channels[i], relu=True)))
            blocks = []
            for rate in rates[sum(layers[:i]):sum(layers[:i + 1])]:
                blocks.append(RepLKBlock(channels[i], int(channels[i] * full['dw_ratio']),
                                         full['large_kernel_sizes'][i], full['small_kernel'], rate, norm_layer, merged))
                blocks.append(ConvFFN(channels[i], int(channels[i] * full['ffn_ratio']), rate, norm_layer))
            returned = full['norm_intermediate_features'] and i in self.out_indices
            self.stages.append(Stage(blocks, norm_layer(channels[i]) if returned else nn.Identity()))
        self.finish()

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        for layer in self.stem:
            x = self.run(layer, x)
        maps = {}
        for i, stage in enumerate(self.stages):
            if i:
                x = self.transitions[i - 1](x)
            for block in stage.blocks:
                x = self.run(block, x)
            if i in self.out_indices:
                maps[i] = stage.norm(x)
        return tuple(maps[i] for i in self.out_indices)

    def parts(self, stage_id: int) -> List[nn.Module]:
        if stage_id == 0:
            return [self.stem]
        before = [self.transitions[stage_id - 2]] if stage_id > 1 else []
        return [*before, self.stages[stage_id - 1]]

    def leaves_out(self, name: str) -> bool:
        stages, stage, norm, *_ = (*name.split('.'), '', '')
        # the norm of a stage whose map is not returned is left out
        if stages == 'stages' and norm == 'norm' and stage.isdigit():
            return int(stage) not in self.out_indices
        return super().leaves_out(name)

    def _layers_before(self, stage: int) -> int:
        """Returns the number of layers in all stages before this one. Two pairs of blocks are a layer."""
        return sum((len(s.blocks) + 3) // 4 for s in self.stages[:stage])

    @property
    def num_layers(self) -> int:
        return self._layers_before(self.num_stages)

    def layer_of(self, name: str) -> int:
        """Returns the layer id of a parameter, as ``optim_factory.py`` of the official code.

        Two pairs of blocks have the same id. A transition belongs to the stage before it.
        """
        kind, *rest = name.split('.')
        if kind == 'stem':
            return 0
        stage = int(rest[0])
        if kind == 'transitions' or rest[1] == 'norm':
            return self._layers_before(stage + 1)
        return self._layers_before(stage) + 1 + int(rest[2]) // 4
