"""UniRepLKNet: A Universal Perception Large-Kernel ConvNet, Ding et al., CVPR 2024, arXiv:2311.15599.

Official code: https://github.com/AILab-CVC/UniRepLKNet (Apache-2.0). Parameter names are the official ones, in both
forms.
"""
from typing import Any, Dict, List, Sequence, Tuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mmlk.layers import GRN, ChannelNorm, SEBlock
from mmlk.ops import DepthwiseConv2d
from mmlk.registry import MODELS
from mmlk.reparam import MergeableBranches
from mmlk.reparam.algebra import fold_bn, fold_linear
from mmlk.reparam.branches import NormLayer, biased
from mmlk.reparam.dilated import DILATED_BRANCHES, DilatedReparamBlock

from .base import Arch, check_not_negative, check_per_stage, check_positive, check_sequences, is_integer, resolve_arch
from .convnext import ConvNeXt, arch_of


def _kernels(third_stage: Sequence[int], others: int) -> Tuple[Tuple[int, ...], ...]:
    return (3, ) * others, (13, ) * others, tuple(third_stage), (13, ) * others


# Kernel sizes by depths, as in the official code: 3x3 in the first stage and 13x13 in the others. A long third stage
# alternates with 3x3.
_KERNELS = {
    (2, 2, 6, 2): _kernels((13, ) * 6, 2),
    (2, 2, 8, 2): _kernels((13, ) * 8, 2),
    (3, 3, 18, 3): _kernels((13, 3) * 9, 3),
    (3, 3, 27, 3): _kernels((13, 3, 3) * 9, 3),
}


# The variants of the paper, with the sizes from the official code.
ARCHS = {
    'A': arch_of((2, 2, 6, 2), 40),
    'F': arch_of((2, 2, 6, 2), 48),
    'P': arch_of((2, 2, 6, 2), 64),
    'N': arch_of((2, 2, 8, 2), 80),
    'T': arch_of((3, 3, 18, 3), 80),
    'S': arch_of((3, 3, 27, 3), 96),
    'B': arch_of((3, 3, 27, 3), 128),
    'L': arch_of((3, 3, 27, 3), 192),
    'XL': arch_of((3, 3, 27, 3), 256),
}

_DEFAULTS = dict(kernel_sizes=None, layer_scale_init_value=1e-6)
_REQUIRED = ('depths', 'dims')
_PLAIN = (3, 5)  # sizes of kernels without dilated branches
_BRANCHED = tuple(kernel for kernel in DILATED_BRANCHES if kernel not in _PLAIN)
_SE_RATIO = 4


class Permute(nn.Module):
    """A module that returns ``x.permute(dims)``."""

    def __init__(self, *dims: int):
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class UniRepLKNetBlock(MergeableBranches):
    """The block of UniRepLKNet, figure 3 of the paper: LarK block, or SmaK block if the kernel is 3x3.

    It has a token mixer, norm, SE block, linear layer, GELU, GRN, linear layer, norm, and a shortcut. Merging folds the
    dilated branches and ``norm`` into one convolution. It also folds the bias of GRN, the second norm and layer scale
    into the last linear layer.

    Args:
        channels: Number of channels of the map.
        kernel_size: 3 or 5 for a plain depthwise convolution, 7 to 17 for one with dilated branches, 0 for no token
            mixer.
        drop_path: Drop rate of stochastic depth.
        layer_scale_init_value: Initial value of layer scale; 0 for no layer scale.
        norm_layer: A function that takes a number of channels and returns a norm layer.
        merged: If True, builds the merged form.

    Shape:
        Input and output: (N, C, H, W).
    """

    def __init__(self, channels: int, kernel_size: int, drop_path: float, layer_scale_init_value: float,
                 norm_layer: NormLayer, merged: bool = False):
        super().__init__()
        if kernel_size == 0:
            self.dwconv = nn.Identity()
        elif kernel_size in _PLAIN:
            self.dwconv = DepthwiseConv2d(channels, kernel_size, bias=merged)
        else:
            self.dwconv = DilatedReparamBlock(channels, kernel_size, norm_layer, merged)
        self.norm = nn.Identity() if merged or kernel_size == 0 else norm_layer(channels)
        self.se = SEBlock(channels, channels // _SE_RATIO)
        self.pwconv1 = nn.Sequential(Permute(0, 2, 3, 1), nn.Linear(channels, 4 * channels))
        self.act = nn.Sequential(nn.GELU(), GRN(4 * channels, bias=not merged))
        self.pwconv2 = nn.Sequential(nn.Linear(4 * channels, channels, bias=merged), Permute(0, 3, 1, 2))
        if not merged:
            self.pwconv2.append(norm_layer(channels))
        scaled = layer_scale_init_value and not merged
        self.gamma = nn.Parameter(torch.full((channels, ), float(layer_scale_init_value))) if scaled else None
        self.drop_path = DropPath(drop_path)

    @property
    def merged(self) -> bool:
        return self.act[1].beta is None

    def norms(self) -> List[nn.Module]:
        if self.merged:
            return []
        return [self.pwconv2[2]] if isinstance(self.norm, nn.Identity) else [self.norm, self.pwconv2[2]]

    def merge_branches(self) -> None:
        if not isinstance(self.norm, nn.Identity):
            self._merge_mixer()
        linear, permute, bn = self.pwconv2
        weight, bias = fold_linear(linear, bn)
        bias = bias + weight @ self.act[1].beta.double().flatten()
        if self.gamma is not None:
            weight, bias = weight * self.gamma.double()[:, None], bias * self.gamma.double()
        merged = nn.Linear(linear.in_features, linear.out_features).to(linear.weight)
        merged.weight.data.copy_(weight)
        merged.bias.data.copy_(bias)
        self.pwconv2 = nn.Sequential(merged.requires_grad_(linear.weight.requires_grad), permute)
        self.act[1].beta = self.gamma = None

    def _merge_mixer(self) -> None:
        """Replaces the token mixer and ``norm`` with one convolution."""
        if not isinstance(self.dwconv, DilatedReparamBlock):
            self.dwconv = biased(fold_bn(self.dwconv, self.norm), self.dwconv)
        else:
            if not self.dwconv.merged:
                self.dwconv.merge_branches()
            self.dwconv.lk_origin = biased(fold_bn(self.dwconv.lk_origin, self.norm), self.dwconv.lk_origin)
        self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.se(self.norm(self.dwconv(x)))
        out = self.pwconv2(self.act(self.pwconv1(out)))
        if self.gamma is not None:
            out = self.gamma[:, None, None] * out
        return x + self.drop_path(out)


def _halve(in_channels: int, out_channels: int) -> Tuple[nn.Module, nn.Module]:
    """Returns a convolution with stride 2 and a norm."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1), ChannelNorm(out_channels)


@MODELS.register_module()
class UniRepLKNet(ConvNeXt):
    """UniRepLKNet as a feature extractor, with a norm on each returned map.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``depths`` and ``dims`` (one per stage) and optionally
            ``kernel_sizes`` (for each stage the kernel size of each block, see :class:`UniRepLKNetBlock`; None for
            those of the named arch with the same depths) and ``layer_scale_init_value`` (0: no layer scale).
        norm_cfg: Norm layer config of the blocks; SyncBN in the official downstream training. The norms of the stem,
            the downsampling and the outputs are always LayerNorms, as in the published weights.
        merged: As in :class:`BaseBackbone`; it is the official deploy form.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, dims[i], ceil(H / s), ceil(W / s)), s = 4, 8, 16, 32. H
        and W may have any value.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    @staticmethod
    def complete(arch: Arch) -> Dict[str, Any]:
        """Checks the arch and returns it as a dict with all default values."""
        full = resolve_arch(arch, ARCHS, _REQUIRED, _DEFAULTS, 'UniRepLKNet')
        check_per_stage(full, *_REQUIRED)
        check_positive(full, *_REQUIRED)
        if min(full['dims']) < _SE_RATIO:
            raise ValueError(f"dims must be at least {_SE_RATIO}, got {tuple(full['dims'])}")
        depths, kernels = tuple(full['depths']), full['kernel_sizes']
        if kernels is None and depths not in _KERNELS:
            raise ValueError(f"depths {depths} need kernel_sizes, one per block; known without are "
                             f"{', '.join(map(str, _KERNELS))}")
        if kernels is None:
            kernels = full['kernel_sizes'] = _KERNELS[depths]
        check_sequences(dict(kernel_sizes=kernels), 'kernel_sizes')
        check_not_negative(full, 'layer_scale_init_value')
        if tuple(len(sizes) if isinstance(sizes, (list, tuple)) else None for sizes in kernels) != depths:
            raise ValueError(f'kernel_sizes must be a tuple per stage with one size per block, {depths}, got {kernels}')
        for size in (size for sizes in kernels for size in sizes):
            if not is_integer(size) or size not in (0, *_PLAIN, *_BRANCHED):
                raise ValueError('kernel_sizes: a kernel size may be 0, '
                                 f"{', '.join(map(str, (*_PLAIN, *_BRANCHED)))}, got {size!r}")
        return full

    @staticmethod
    def stem(in_channels: int, channels: int) -> Sequence[nn.Module]:
        return *_halve(in_channels, channels // 2), nn.GELU(), *_halve(channels // 2, channels)

    @staticmethod
    def downsampling(in_channels: int, channels: int) -> Sequence[nn.Module]:
        return _halve(in_channels, channels)

    def block(self, arch: Dict[str, Any], stage: int, index: int, drop_path: float, merged: bool) -> nn.Module:
        return UniRepLKNetBlock(arch['dims'][stage], arch['kernel_sizes'][stage][index], drop_path,
                                arch['layer_scale_init_value'], self.norm_layer, merged)
