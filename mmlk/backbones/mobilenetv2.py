"""MobileNetV2 with kernels of any size, as in the experiments from which RepLKNet derives its guidelines.

MobileNetV2: Sandler et al., CVPR 2018, arXiv:1801.04381. The experiments: Ding et al., CVPR 2022, arXiv:2203.06717,
section 3 and the appendix on dilation, for which no code was published. Parameter names are those of mmpretrain, mmseg
and mmdet; re-parameterized kernels have the names of RepLKNet. :func:`mmlk.weights.load` converts torchvision's names.
"""
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, make_divisible
from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d
from mmlk.registry import MODELS
from mmlk.reparam import ConvNorm, ReparamLargeKernel
from mmlk.reparam.algebra import fold_bn, pad_kernel
from mmlk.reparam.branches import NormLayer

from .base import (Arch, BaseBackbone, check_flags, check_kernels, check_not_negative, check_positive, check_sequences,
                   is_integer, per_block, resolve_arch)

# Table 2 of the MobileNetV2 paper: expansion, channels, number of blocks, stride of the first block. The last two rows
# have stride 32 and are the last stage in the experiments.
_ROWS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _everywhere(kernel: int, **other) -> Dict[str, Any]:
    return dict(kernel_sizes=(kernel, ) * len(_ROWS), **other)


def _last_stage(kernel: int) -> Dict[str, Any]:
    return dict(kernel_sizes=(3, ) * 5 + (kernel, ) * 2, small_kernel=3)


# The networks of the experiments. A number is the kernel size of all depthwise convolutions; with 'last', only of those
# in the last stage, which have a parallel 3x3 kernel (guideline 5). '-noshortcut': without shortcuts. '-reparam': with
# parallel 3x3 kernels. '-dilated': 3x3 kernels that are dilated to the same receptive field.
ARCHS = {
    '3': _everywhere(3),
    '3-noshortcut': _everywhere(3, shortcut=False),
    '9': _everywhere(9),
    '9-reparam': _everywhere(9, small_kernel=3),
    '9-dilated': _everywhere(3, kernel_dilations=(4, ) * len(_ROWS)),
    '13': _everywhere(13),
    '13-noshortcut': _everywhere(13, shortcut=False),
    '13-reparam': _everywhere(13, small_kernel=3),
    '13-dilated': _everywhere(3, kernel_dilations=(6, ) * len(_ROWS)),
    'last7': _last_stage(7),
    'last9': _last_stage(9),
    'last13': _last_stage(13),
}

_DEFAULTS = dict(widen_factor=1.0, arch_settings=_ROWS, kernel_sizes=None, kernel_dilations=None, small_kernel=None,
                 shortcut=True)


def depthwise(channels: int, kernel_size: int, stride: int, dilation: int, bias: bool) -> nn.Conv2d:
    """Returns a depthwise convolution whose output is (ceil(H / stride), ceil(W / stride)) for an odd kernel."""
    if stride == dilation == 1:
        return DepthwiseConv2d(channels, kernel_size, bias)
    return nn.Conv2d(channels, channels, kernel_size, stride, dilation * (kernel_size // 2), dilation, channels, bias)


class ReparamDepthwise(ReparamLargeKernel):
    """:class:`~mmlk.reparam.ReparamLargeKernel` with a stride, a dilation of both kernels, and a ReLU6.

    Args:
        channels: Number of channels of the map.
        kernel_size: Side of the large kernel, odd.
        small_kernel: Side of the small kernel, odd and not larger than ``kernel_size``.
        norm_layer: A function that takes a number of channels and returns a norm layer.
        stride: Stride of both convolutions.
        dilation: Dilation of both convolutions.
        merged: If True, builds the merged form.

    Shape:
        Input: (N, C, H, W). Output: (N, C, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, channels: int, kernel_size: int, small_kernel: int, norm_layer: NormLayer, stride: int = 1,
                 dilation: int = 1, merged: bool = False):
        nn.Module.__init__(self)
        if merged:
            self.lkb_reparam = depthwise(channels, kernel_size, stride, dilation, bias=True)
            return
        for name, kernel in (('lkb_origin', kernel_size), ('small_conv', small_kernel)):
            conv = depthwise(channels, kernel, stride, dilation, bias=False)
            self.add_module(name, ConvNorm(conv, norm_layer(channels)))

    def merge_branches(self) -> None:
        origin = self.lkb_origin.conv
        folded = [fold_bn(branch.conv, branch.bn) for branch in self._branches()]
        merged = depthwise(origin.in_channels, origin.kernel_size[0], origin.stride[0], origin.dilation[0],
                           bias=True).to(origin.weight)
        merged.weight.data.copy_(sum(pad_kernel(kernel, origin.kernel_size) for kernel, _ in folded))
        merged.bias.data.copy_(sum(bias for _, bias in folded))
        merged.requires_grad_(origin.weight.requires_grad)
        del self.lkb_origin, self.small_conv
        self.lkb_reparam = merged

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(super().forward(x), inplace=True)


class InvertedResidual(nn.Module):
    """The block of MobileNetV2: pointwise layer, token mixer, pointwise layer without activation, and a shortcut.

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of channels of the output.
        hidden_channels: Number of channels of the token mixer. If it is ``in_channels``, the first pointwise layer is
            left out.
        mixer: The token mixer, including its norm and activation. Its input is (N, hidden_channels, H, W).
        norm_layer: A function that takes a number of channels and returns a norm layer.
        shortcut: Whether to add the input to the output; they must have the same shape.
        drop_path: Drop rate of stochastic depth.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int, mixer: nn.Module,
                 norm_layer: NormLayer, shortcut: bool, drop_path: float):
        super().__init__()
        expand = [] if hidden_channels == in_channels else [
            ConvNorm(nn.Conv2d(in_channels, hidden_channels, 1, bias=False), norm_layer(hidden_channels),
                     nn.ReLU6(inplace=True))]
        project = ConvNorm(nn.Conv2d(hidden_channels, out_channels, 1, bias=False), norm_layer(out_channels))
        self.conv = nn.Sequential(*expand, mixer, project)
        self.shortcut = shortcut
        if shortcut:
            self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.conv(x)) if self.shortcut else self.conv(x)


class Place(NamedTuple):
    """Position of a block, number ``block`` in a ``row`` of ``arch_settings``, and the sizes that follow from it."""

    stage: int
    row: int
    block: int
    in_channels: int
    hidden_channels: int
    out_channels: int
    stride: int
    dilation: int
    shortcut: bool


def complete(arch: Arch, known: Dict[str, Dict[str, Any]], defaults: Dict[str, Any], family: str) -> Dict[str, Any]:
    """The arch as a full, checked dict. Arguments as in :func:`.base.resolve_arch`."""
    full = resolve_arch(arch, known, (), defaults, family)
    check_sequences(full, 'arch_settings')
    rows = full['arch_settings']
    for row in rows:
        four = isinstance(row, (list, tuple)) and len(row) == 4 and all(is_integer(v) and v > 0 for v in row)
        if not four or row[3] > 2:
            raise ValueError('a row of arch_settings is expansion, channels, blocks, stride: positive integers, the '
                             f'stride 1 or 2; got {row!r}')
    if not any(row[3] == 2 for row in rows):
        raise ValueError('arch_settings needs a row with stride 2')
    for key, usual in (('kernel_sizes', 3), ('kernel_dilations', 1)):
        if full[key] is None:
            full[key] = (usual, ) * len(rows)
        check_sequences(full, key)
        if len(full[key]) != len(rows):
            raise ValueError(f'{key} must have one entry per row of arch_settings, '
                             f'got {len(full[key])} for {len(rows)}')
    check_positive(full, 'kernel_dilations')
    small = full['small_kernel']
    check_kernels(full, 'kernel_sizes')
    check_kernels(dict(small_kernel=() if small is None else (small, )), 'small_kernel')
    if small is not None and (small >= max(full['kernel_sizes']) or max(full['kernel_dilations']) > 1):
        raise ValueError(f'small_kernel stands beside larger, dense kernels; got {small} with kernel_sizes '
                         f"{tuple(full['kernel_sizes'])} and kernel_dilations {tuple(full['kernel_dilations'])}")
    check_flags(full, 'shortcut')
    check_not_negative(full, 'widen_factor')
    if not full['widen_factor'] > 0:
        raise ValueError(f"widen_factor must be positive, got {full['widen_factor']}")
    return full


def _stages(rows: Sequence[Sequence[int]]) -> List[List[int]]:
    """Returns the indices of the rows of each stage. Rows with stride 2 belong to the stage with stride 4."""
    stages: List[List[int]] = [[]]
    for i, row in enumerate(rows):
        if row[3] == 2 and any(rows[j][3] == 2 for j in range(i)):
            stages.append([])
        stages[-1].append(i)
    return stages


def _places(arch: Dict[str, Any], widths: Sequence[int], strides: Sequence[int],
            dilations: Sequence[Sequence[int]]) -> Iterator[Place]:
    """Yields the place of every block, in order.

    Args:
        arch: The arch with all keys.
        widths: Number of channels of the stem and of each row.
        strides: Stride of each stage.
        dilations: Dilation of each block of each stage.
    """
    for stage, rows in enumerate(_stages(arch['arch_settings'])):
        dilation_of = iter(dilations[stage])
        for row in rows:
            expansion, _, blocks, stride = arch['arch_settings'][row]
            for block in range(blocks):
                dilation = next(dilation_of) * arch['kernel_dilations'][row]
                before, after = widths[row] if block == 0 else widths[row + 1], widths[row + 1]
                step = strides[stage] if stride == 2 and block == 0 else 1
                yield Place(stage, row, block, before, before * expansion, after, step, dilation,
                            arch['shortcut'] and step == 1 and before == after)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@MODELS.register_module()
class MobileNetV2(BaseBackbone):
    """MobileNetV2 as a feature extractor, without the last pointwise layer to 1280 channels.

    A stage has all rows with the same stride; the first stage has those with strides 2 and 4. A subclass that changes
    the token mixer overrides ``complete``, and ``mixer`` or ``block``.

    Args:
        arch: A name of ``ARCHS``, or a dict with any of ``widen_factor`` (of all widths, rounded to multiples of 8),
            ``arch_settings`` (rows of expansion, channels, blocks, stride of the first block), ``kernel_sizes`` and
            ``kernel_dilations`` (of the depthwise convolutions, one per row; 3 and 1 each), ``small_kernel`` (None, or
            the size of a kernel in parallel to each larger one) and ``shortcut`` (whether blocks that keep the shape
            add their input).
        strides: Stride of the block that opens each stage, after the stem's 2.
        dilations: Dilation of the depthwise convolutions of each stage, or of each block of it, times
            ``kernel_dilations``. mmseg's D8 form has strides (2, 2, 1, 1), and dilates the first block of each row
            alone: (1, 1, (2, 1, 1, 1, 2, 1, 1), (4, 1, 1, 4)).
        drop_path_rate: Drop rate (stochastic depth) of the last block that has a shortcut. It increases linearly from 0
            over those blocks. Neither in the papers nor in mmpretrain's code.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, channels[i], ceil(H / s), ceil(W / s)), s = 4, 8, 16, 32
        with the default strides and channels 24, 32, 96, 320 with the default rows. H and W may have any value.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    def __init__(self, arch: Arch = '3', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 strides: Sequence[int] = (2, 2, 2, 2), dilations: Sequence[int] = (1, 1, 1, 1),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: dict = dict(type='BN'),
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        full = self.complete(arch)
        stages = _stages(full['arch_settings'])
        widths = [make_divisible(row[1] * full['widen_factor'], 8) for row in full['arch_settings']]
        super().__init__([widths[rows[-1]] for rows in stages], in_channels=in_channels, out_indices=out_indices,
                         drop_path_rate=drop_path_rate, frozen_stages=frozen_stages, norm_cfg=norm_cfg,
                         norm_eval=norm_eval, with_cp=with_cp, merged=merged, init_cfg=init_cfg)
        check_sequences(dict(strides=strides, dilations=dilations), 'strides', 'dilations')
        if len(strides) != len(stages) or not all(is_integer(v) and v > 0 for v in strides):
            raise ValueError(f'{type(self).__name__}: strides must be {len(stages)} positive integers, '
                             f'got {tuple(strides)}')
        blocks = [sum(full['arch_settings'][row][2] for row in rows) for rows in stages]
        dilation = per_block(type(self).__name__, 'dilations', dilations, blocks)
        width = make_divisible(32 * full['widen_factor'], 8)
        self.conv1 = ConvNorm(nn.Conv2d(in_channels, width, 3, 2, 1, bias=False), self.norm_layer(width),
                              nn.ReLU6(inplace=True))
        places = list(_places(full, (width, *widths), strides, dilation))
        shortcuts = sum(place.shortcut for place in places)
        if drop_path_rate and not shortcuts:
            raise ValueError(f'{type(self).__name__}: drop_path_rate leaves the shortcut alone, and this arch has none')
        rates = iter(torch.linspace(0, drop_path_rate, shortcuts, device='cpu').tolist())
        self._stage_rows = stages[:self.num_stages]
        for row in range(self._stage_rows[-1][-1] + 1):
            self.add_module(f'layer{row + 1}', nn.Sequential(*(
                self.block(full, place, next(rates) if place.shortcut else 0.0, merged)
                for place in places if place.row == row)))
        self.apply(_init)
        self.finish()

    @staticmethod
    def complete(arch: Arch) -> Dict[str, Any]:
        """Checks the arch and returns it as a dict with all default values."""
        return complete(arch, ARCHS, _DEFAULTS, 'MobileNetV2')

    def block(self, arch: Dict[str, Any], place: Place, drop_path: float, merged: bool) -> InvertedResidual:
        """Returns the block at a place. ``arch`` is what :meth:`complete` returns."""
        return InvertedResidual(place.in_channels, place.out_channels, place.hidden_channels,
                                self.mixer(arch, place, merged), self.norm_layer, place.shortcut, drop_path)

    def mixer(self, arch: Dict[str, Any], place: Place, merged: bool) -> nn.Module:
        """Returns the token mixer of a block with norm and activation. Its input is (N, hidden_channels, H, W)."""
        channels, kernel, small = place.hidden_channels, arch['kernel_sizes'][place.row], arch['small_kernel']
        if small is not None and small < kernel:
            return ReparamDepthwise(channels, kernel, small, self.norm_layer, place.stride, place.dilation, merged)
        return ConvNorm(depthwise(channels, kernel, place.stride, place.dilation, bias=False),
                        self.norm_layer(channels), nn.ReLU6(inplace=True))

    def _layers(self, stage: int) -> List[nn.Module]:
        return [self._modules[f'layer{row + 1}'] for row in self._stage_rows[stage]]

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        stages = [[block for layer in self._layers(stage) for block in layer] for stage in range(self.num_stages)]
        return self.run_stages(self.run(self.conv1, x), stages)

    def parts(self, stage_id: int) -> List[nn.Module]:
        return self._layers(stage_id - 1) if stage_id else [self.conv1]

    def _blocks_before(self, row: int) -> int:
        return sum(len(self._modules[f'layer{i + 1}']) for i in range(row))

    @property
    def num_layers(self) -> int:
        return self._blocks_before(self._stage_rows[-1][-1] + 1)

    def layer_of(self, name: str) -> int:
        """Returns the layer id of a parameter. Each block is a layer."""
        layer, block, *_ = name.split('.')
        return 0 if layer == 'conv1' else self._blocks_before(int(layer[len('layer'):]) - 1) + int(block) + 1
