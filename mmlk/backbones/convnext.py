"""ConvNeXt: A ConvNet for the 2020s, Liu et al., CVPR 2022, arXiv:2201.03545, with 7x7 or with very large kernels.

Official code: https://github.com/facebookresearch/ConvNeXt (MIT). Parameter names are the official ones. The variants
with very large kernels are from the appendix of RepLKNet (arXiv:2203.06717), for which no code was published. They
replace the 7x7 convolution with the re-parameterized large kernel of RepLKNet, which has RepLKNet's parameter names.
"""
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mmlk.layers import ChannelNorm
from mmlk.ops import DepthwiseConv2d
from mmlk.registry import MODELS
from mmlk.reparam import ReparamLargeKernel

from .base import (Arch, BaseBackbone, check_kernels, check_not_negative, check_per_stage, check_positive,
                   resolve_arch)


def arch_of(depths: Sequence[int], width: int, **other) -> Dict[str, Any]:
    """Returns an arch of four stages: ``width`` is that of the first, and each of the others is twice as wide."""
    return dict(depths=tuple(depths), dims=tuple(width * 2**stage for stage in range(4)), **other)


_VERY_LARGE = dict(kernel_sizes=(31, 29, 27, 13), small_kernel=5)

# Section 3 of the ConvNeXt paper; '-31': appendix of the RepLKNet paper, which has these two sizes.
ARCHS = {
    'T': arch_of((3, 3, 9, 3), 96),
    'S': arch_of((3, 3, 27, 3), 96),
    'B': arch_of((3, 3, 27, 3), 128),
    'L': arch_of((3, 3, 27, 3), 192),
    'XL': arch_of((3, 3, 27, 3), 256),
    'T-31': arch_of((3, 3, 9, 3), 96, **_VERY_LARGE),
    'S-31': arch_of((3, 3, 27, 3), 96, **_VERY_LARGE),
}

_DEFAULTS = dict(layer_scale_init_value=1e-6, kernel_sizes=None, small_kernel=None)
_REQUIRED = ('depths', 'dims')


class Block(nn.Module):
    """The block of ConvNeXt, figure 4 of the paper: token mixer, norm, pointwise layer, GELU, pointwise layer,
    shortcut.

    Args:
        name: Name of the token mixer in the state dict.
        mixer: The token mixer. Its input and its output are (N, C, H, W).
        channels: Number of channels of the map.
        drop_path: Drop rate of stochastic depth.
        layer_scale_init_value: Initial value of layer scale; 0 for no layer scale.
    """

    def __init__(self, name: str, mixer: nn.Module, channels: int, drop_path: float, layer_scale_init_value: float):
        super().__init__()
        self.mixer_name = name
        self.add_module(name, mixer)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        scaled = layer_scale_init_value > 0
        self.gamma = nn.Parameter(torch.full((channels, ), float(layer_scale_init_value))) if scaled else None
        self.drop_path = DropPath(drop_path)

    def mix(self, x: Tensor) -> Tensor:
        """Returns the output of the token mixer, (N, C, H, W)."""
        return self._modules[self.mixer_name](x)

    def forward(self, x: Tensor) -> Tensor:
        out = self.mix(x).permute(0, 2, 3, 1)
        out = self.pwconv2(self.act(self.pwconv1(self.norm(out))))
        if self.gamma is not None:
            out = self.gamma * out
        return x + self.drop_path(out.permute(0, 3, 1, 2))


def init_weights(module: nn.Module) -> None:
    """Fills a convolution or linear layer as the official code does; leaves all other modules as they are."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@MODELS.register_module()
class ConvNeXt(BaseBackbone):
    """ConvNeXt as a feature extractor, with a norm on each returned map.

    All norms of ConvNeXt itself are LayerNorms, independent of ``norm_cfg``, as in the published weights. ``norm_cfg``
    applies to the re-parameterized branches, which only an arch with ``small_kernel`` has. A subclass that changes the
    token mixer overrides ``complete`` and ``block``; one that changes the downsampling, the norms or the layers
    overrides ``stem`` and ``downsampling``, ``opening``, ``output_norm`` or ``blocks_per_layer``.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``depths`` and ``dims`` (one per stage) and optionally
            ``layer_scale_init_value`` (0: no layer scale), ``kernel_sizes`` (one per stage; 7 each) and
            ``small_kernel``: None for plain depthwise convolutions (``dwconv``), else the size of the parallel small
            kernel of re-parameterized ones (``large_kernel``).
        norm_cfg: Norm layer config of the re-parameterized branches.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, dims[i], H // s, W // s), s = 4, 8, 16, 32. Rows and
        columns that do not fill a patch are cropped, as officially. H and W must be at least the s of the last stage.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    optional_weights = ('norm[0-9].*', )

    def __init__(self, arch: Arch = 'T', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: dict = dict(type='BN'),
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        full = self.complete(arch)
        depths, dims = full['depths'], full['dims']
        super().__init__(dims, in_channels=in_channels, out_indices=out_indices, drop_path_rate=drop_path_rate,
                         frozen_stages=frozen_stages, norm_cfg=norm_cfg, norm_eval=norm_eval, with_cp=with_cp,
                         merged=merged, init_cfg=init_cfg)
        rates = torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist()
        self.downsample_layers, self.stages = nn.ModuleList(), nn.ModuleList()
        for i in range(self.num_stages):
            self.downsample_layers.append(nn.Sequential(*self.opening(full, i)))
            first = sum(depths[:i])
            self.stages.append(nn.ModuleList(
                self.block(full, i, j, rates[first + j], merged) for j in range(depths[i])))
        for i in sorted(self.out_indices):
            self.add_module(f'norm{i}', self.output_norm(full, i))
        self.apply(init_weights)
        self.finish()

    @staticmethod
    def complete(arch: Arch) -> Dict[str, Any]:
        """Checks the arch and returns it as a dict with all default values."""
        full = resolve_arch(arch, ARCHS, _REQUIRED, _DEFAULTS, 'ConvNeXt')
        check_per_stage(full, *_REQUIRED)
        if full['kernel_sizes'] is None:
            full['kernel_sizes'] = (7, ) * len(full['depths'])
        check_per_stage(full, 'kernel_sizes', *_REQUIRED)
        check_positive(full, *_REQUIRED)
        check_kernels(full, 'kernel_sizes', full['small_kernel'])
        check_not_negative(full, 'layer_scale_init_value')
        return full

    @staticmethod
    def stem(in_channels: int, channels: int) -> Sequence[nn.Module]:
        """Returns the layers before the first stage."""
        return nn.Conv2d(in_channels, channels, 4, stride=4), ChannelNorm(channels)

    @staticmethod
    def downsampling(in_channels: int, channels: int) -> Sequence[nn.Module]:
        """Returns the layers before each of the other stages."""
        return ChannelNorm(in_channels), nn.Conv2d(in_channels, channels, 2, stride=2)

    def opening(self, arch: Dict[str, Any], stage: int) -> Sequence[nn.Module]:
        """Returns the layers before a stage. ``arch`` is what :meth:`complete` returns."""
        dims = arch['dims']
        return self.downsampling(dims[stage - 1], dims[stage]) if stage else self.stem(self.in_channels, dims[0])

    def output_norm(self, arch: Dict[str, Any], stage: int) -> nn.Module:
        """Returns the norm of the map of a stage that is returned. ``arch`` is what :meth:`complete` returns."""
        return ChannelNorm(arch['dims'][stage])

    def block(self, arch: Dict[str, Any], stage: int, index: int, drop_path: float, merged: bool) -> nn.Module:
        """Returns block ``index`` of a stage. ``arch`` is what :meth:`complete` returns."""
        channels, kernel, small = arch['dims'][stage], arch['kernel_sizes'][stage], arch['small_kernel']
        if small is None:
            name, mixer = 'dwconv', DepthwiseConv2d(channels, kernel)
        else:
            name, mixer = 'large_kernel', ReparamLargeKernel(channels, kernel, small, self.norm_layer, merged)
        return Block(name, mixer, channels, drop_path, arch['layer_scale_init_value'])

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        maps = {}
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = downsample(x)
            for block in stage:
                x = self.run(block, x)
            if i in self.out_indices:
                maps[i] = self._modules[f'norm{i}'](x)
        return tuple(maps[i] for i in self.out_indices)

    def parts(self, stage_id: int) -> List[nn.Module]:
        return self._opened_parts(stage_id, self.downsample_layers, self.stages)

    def blocks_per_layer(self, stage: int) -> int:
        """Returns the number of blocks of a stage that have the same layer id."""
        return 3

    def _layers_before(self, stage: int) -> int:
        return sum(-(-len(self.stages[i]) // self.blocks_per_layer(i)) for i in range(stage))

    @property
    def num_layers(self) -> int:
        return self._layers_before(self.num_stages)

    def layer_of(self, name: str) -> int:
        """Returns the layer id of a parameter, as ``layer_decay_optimizer_constructor.py`` of the official code.

        Three blocks have the same id. Downsampling has the id of the blocks after it. The norms of the outputs, which
        are not pretrained, have the id of a head, ``num_layers + 1``.
        """
        kind, *rest = name.split('.')
        if kind == 'downsample_layers':
            stage = int(rest[0])
            return self._layers_before(stage) + 1 if stage else 0
        if kind == 'stages':
            stage, block = map(int, rest[:2])
            return self._layers_before(stage) + 1 + block // self.blocks_per_layer(stage)
        return self.num_layers + 1
