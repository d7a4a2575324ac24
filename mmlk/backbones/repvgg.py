"""RepVGG: Making VGG-style ConvNets Great Again, Ding et al., CVPR 2021, arXiv:2101.03697.

Official code: https://github.com/DingXiaoH/RepVGG (MIT). Parameter names are the official ones.
"""
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mmlk.layers import SEBlock
from mmlk.registry import MODELS
from mmlk.reparam import ConvNorm, MergeableBranches
from mmlk.reparam.algebra import fold_bn, fold_identity, pad_kernel
from mmlk.reparam.branches import NormLayer

from .base import (Arch, BaseBackbone, check_flags, check_positive, check_sequences, is_integer, is_number,
                   per_block, resolve_arch)

_A, _B, _D = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)


def _arch(num_blocks: Sequence[int], a: float, b: float, groups: int = 1, **other) -> Dict[str, Any]:
    """Returns an arch with width multipliers ``a`` (first three stages) and ``b`` (last stage).

    Every second layer has ``groups`` groups.
    """
    grouped = dict(override_groups_map=dict.fromkeys(range(2, 27, 2), groups)) if groups > 1 else {}
    return dict(num_blocks=num_blocks, width_multiplier=(a, a, a, b), **grouped, **other)


# Tables 2 and 3 of the paper; D2se is only in the official code.
ARCHS = {
    'A0': _arch(_A, 0.75, 2.5),
    'A1': _arch(_A, 1, 2.5),
    'A2': _arch(_A, 1.5, 2.75),
    'B0': _arch(_B, 1, 2.5),
    'B1': _arch(_B, 2, 4),
    'B1g2': _arch(_B, 2, 4, groups=2),
    'B1g4': _arch(_B, 2, 4, groups=4),
    'B2': _arch(_B, 2.5, 5),
    'B2g2': _arch(_B, 2.5, 5, groups=2),
    'B2g4': _arch(_B, 2.5, 5, groups=4),
    'B3': _arch(_B, 3, 5),
    'B3g2': _arch(_B, 3, 5, groups=2),
    'B3g4': _arch(_B, 3, 5, groups=4),
    'D2se': _arch(_D, 2.5, 5, use_se=True),
}

_DEFAULTS = dict(override_groups_map=None, use_se=False)
_REQUIRED = ('num_blocks', 'width_multiplier')
_STAGES = 4


def _channels(width_multiplier: Sequence[float]) -> Tuple[int, ...]:
    return tuple(int(64 * 2**stage * width) for stage, width in enumerate(width_multiplier))


def _complete(arch: Arch) -> Dict[str, Any]:
    """Checks the arch and returns it as a dict with all default values."""
    full = resolve_arch(arch, ARCHS, _REQUIRED, _DEFAULTS, 'RepVGG')
    check_sequences(full, *_REQUIRED)
    check_flags(full, 'use_se')
    blocks, widths = full['num_blocks'], full['width_multiplier']
    if not len(blocks) == len(widths) == _STAGES:
        raise ValueError(f'num_blocks and width_multiplier must have {_STAGES} entries, '
                         f'got {len(blocks)} and {len(widths)}')
    check_positive(full, 'num_blocks')
    if not all(map(is_number, widths)):
        raise ValueError(f'width_multiplier must be numbers, got {tuple(widths)}')
    least = 16 if full['use_se'] else 1  # the SE block has a sixteenth of the channels
    if min(_channels(widths)) < least:
        raise ValueError(f'width_multiplier {tuple(widths)} gives {_channels(widths)} channels; '
                         f'each stage needs at least {least}')
    if full['override_groups_map'] is None:
        full['override_groups_map'] = {}
    if not isinstance(full['override_groups_map'], dict):
        raise ValueError(f"override_groups_map must be a dict, got {full['override_groups_map']!r}")
    # --cfg-options makes strings of keys
    full['override_groups_map'] = {int(layer) if isinstance(layer, str) and layer.isdecimal() else layer: groups
                                   for layer, groups in full['override_groups_map'].items()}
    absent = [layer for layer in full['override_groups_map'] if layer not in range(1, sum(blocks) + 1)]
    if absent:
        raise ValueError(f'override_groups_map counts the layers after the stem, 1 to {sum(blocks)}; '
                         f"there is no {', '.join(map(repr, absent))}")
    stages = [0, *(stage for stage, count in enumerate(blocks) for _ in range(count))]
    channels = _channels(widths)
    for layer, groups in full['override_groups_map'].items():
        out, before = channels[stages[layer]], channels[stages[layer - 1]] if layer > 1 else min(64, channels[0])
        if not is_integer(groups) or groups < 1 or out % groups or before % groups:
            raise ValueError(f'override_groups_map: the groups of layer {layer} must divide its channels, {before} and '
                             f'{out}, got {groups!r}')
    return full


def _conv3x3(in_channels: int, out_channels: int, stride, dilation, groups: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, groups, bias)


class RepVGGBlock(MergeableBranches):
    """The sum of a 3x3 convolution, a 1x1 convolution and, if the shape is the same, the input, each with a norm;
    figure 4.

    The state dict keys are the official ones: ``rbr_dense.{conv,bn}``, ``rbr_1x1.{conv,bn}`` and ``rbr_identity``, or
    merged ``rbr_reparam``. The SE block, ``se.{down,up}``, is between the sum and the ReLU in both forms.

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of channels of the output.
        norm_layer: A function that takes a number of channels and returns a norm layer.
        stride: Stride of the convolutions.
        dilation: Dilation of the 3x3 convolution.
        groups: Groups of the convolutions.
        identity: Whether the input is a branch. This needs equal numbers of channels and stride 1.
        use_se: Whether to add the SE block.
        drop_path: Drop rate in training, at which only the identity branch is kept.
        merged: If True, builds the merged form.

    Shape:
        Input: (N, in_channels, H, W). Output: (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, norm_layer: NormLayer, stride: int = 1, dilation: int = 1,
                 groups: int = 1, identity: bool = False, use_se: bool = False, drop_path: float = 0.0,
                 merged: bool = False):
        super().__init__()
        self.se = SEBlock(out_channels, out_channels // 16) if use_se else nn.Identity()
        self.nonlinearity = nn.ReLU(inplace=True)
        if merged:
            self.rbr_reparam = _conv3x3(in_channels, out_channels, stride, dilation, groups, bias=True)
            return
        self.rbr_dense = ConvNorm(_conv3x3(in_channels, out_channels, stride, dilation, groups, bias=False),
                                  norm_layer(out_channels))
        self.rbr_1x1 = ConvNorm(nn.Conv2d(in_channels, out_channels, 1, stride, groups=groups, bias=False),
                                norm_layer(out_channels))
        if identity:
            self.rbr_identity = norm_layer(out_channels)
            self.drop_path = DropPath(drop_path)

    @property
    def merged(self) -> bool:
        return 'rbr_reparam' in self._modules

    def norms(self) -> List[nn.Module]:
        if self.merged:
            return []
        identity = [self.rbr_identity] if 'rbr_identity' in self._modules else []
        return [self.rbr_dense.bn, self.rbr_1x1.bn, *identity]

    def merge_branches(self) -> None:
        dense = self.rbr_dense.conv
        folded = [fold_bn(branch.conv, branch.bn) for branch in (self.rbr_dense, self.rbr_1x1)]
        if 'rbr_identity' in self._modules:
            folded.append(fold_identity(self.rbr_identity, dense.groups))
            del self.rbr_identity, self.drop_path
        merged = _conv3x3(dense.in_channels, dense.out_channels, dense.stride, dense.dilation, dense.groups,
                          bias=True).to(dense.weight)
        merged.weight.data.copy_(sum(pad_kernel(kernel, dense.kernel_size) for kernel, _ in folded))
        merged.bias.data.copy_(sum(bias for _, bias in folded))
        merged.requires_grad_(dense.weight.requires_grad)
        del self.rbr_dense, self.rbr_1x1
        self.rbr_reparam = merged

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            out = self.rbr_reparam(x)
        else:
            out = self.rbr_dense(x) + self.rbr_1x1(x)
            if 'rbr_identity' in self._modules:
                out = self.drop_path(out) + self.rbr_identity(x)
        return self.nonlinearity(self.se(out))


@MODELS.register_module()
class RepVGG(BaseBackbone):
    """RepVGG as a feature extractor.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``num_blocks`` and ``width_multiplier`` (four each; stage i has
            ``64 * 2**i * width_multiplier[i]`` channels) and optionally ``override_groups_map`` ({layer: groups},
            layers counted from 1 after the stem) and ``use_se`` (an SE block before each ReLU).
        strides: Stride of the first block of each stage, after the stem's 2.
        dilations: Dilation of the 3x3 convolutions of each stage, or of each block of it. The official PSPNet has
            strides (2, 2, 1, 1) and dilations (1, 1, 2, 4); the paper's fast form dilates only the last four blocks of
            the third stage, and the last stage.
        drop_path_rate: Drop rate (stochastic depth) of the last block that has an identity branch. It increases
            linearly from 0 over those blocks. Neither in the paper nor in the official code; as in timm, the identity
            branch is kept. It has no effect in the merged form.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, channels[i], ceil(H / s), ceil(W / s)), s = 4, 8, 16, 32
        with the default strides. H and W may have any value.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    def __init__(self, arch: Arch = 'A0', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 strides: Sequence[int] = (2, 2, 2, 2), dilations: Sequence[int] = (1, 1, 1, 1),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: dict = dict(type='BN'),
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        full = _complete(arch)
        channels, num_blocks, groups = (_channels(full['width_multiplier']), full['num_blocks'],
                                        full['override_groups_map'])
        super().__init__(channels, in_channels=in_channels, out_indices=out_indices, drop_path_rate=drop_path_rate,
                         frozen_stages=frozen_stages, norm_cfg=norm_cfg, norm_eval=norm_eval, with_cp=with_cp,
                         merged=merged, init_cfg=init_cfg)
        check_sequences(dict(strides=strides, dilations=dilations), 'strides', 'dilations')
        if len(strides) != _STAGES or not all(is_integer(v) and v > 0 for v in strides):
            raise ValueError(f'RepVGG: strides must be {_STAGES} positive integers, got {tuple(strides)}')
        dilation = per_block('RepVGG', 'dilations', dilations, num_blocks)
        norm_layer, use_se = self.norm_layer, full['use_se']
        width = min(64, channels[0])
        self.stage0 = RepVGGBlock(in_channels, width, norm_layer, stride=2, use_se=use_se, merged=merged)
        rates = iter(torch.linspace(0, drop_path_rate, sum(num_blocks) - _STAGES, device='cpu').tolist())
        layer = 0
        for i in range(self.num_stages):
            blocks = nn.ModuleList()
            for j in range(num_blocks[i]):
                layer += 1
                # as in all official files, the first block of a stage has no identity branch, even with stride 1
                blocks.append(RepVGGBlock(width, channels[i], norm_layer, 1 if j else strides[i], dilation[i][j],
                                          groups.get(layer, 1), identity=j > 0, use_se=use_se,
                                          drop_path=next(rates) if j else 0.0, merged=merged))
                width = channels[i]
            self.add_module(f'stage{i + 1}', blocks)
        self.finish()

    def _stages(self) -> List[nn.ModuleList]:
        return [getattr(self, f'stage{i + 1}') for i in range(self.num_stages)]

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        return self.run_stages(self.run(self.stage0, x), self._stages())

    def parts(self, stage_id: int) -> List[nn.Module]:
        return [getattr(self, f'stage{stage_id}')]

    @property
    def num_layers(self) -> int:
        return sum(len(stage) for stage in self._stages())

    def layer_of(self, name: str) -> int:
        """Returns the layer id of a parameter. Each block is a layer."""
        stage, block, *_ = name.split('.')
        if stage == 'stage0':
            return 0
        before = self._stages()[:int(stage[len('stage'):]) - 1]
        return sum(map(len, before)) + 1 + int(block)
