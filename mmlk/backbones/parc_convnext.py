"""ParC-ConvNeXt: ConvNeXt with global circular convolutions in its late blocks.

ParC-Net, Zhang et al., ECCV 2022, arXiv:2203.03952, and Fast-ParC, Yang et al., arXiv:2210.04020. Official code:
https://github.com/hkzhang91/ParC-Net (no licence: only its parameter names are followed).
"""
from typing import Any, Dict

from timm.layers import trunc_normal_
from torch import Tensor, nn

from mmlk.ops.parc import ParCOperator, parc
from mmlk.registry import MODELS

from .base import Arch, check_per_stage, check_positive, is_integer, resolve_arch
from .convnext import Block, ConvNeXt, arch_of


# XT: the ParC-Net paper. T: the same with the widths of ConvNeXt-T.
ARCHS = {'XT': arch_of((3, 3, 9, 3), 48), 'T': arch_of((3, 3, 9, 3), 96)}

_DEFAULTS = dict(layer_scale_init_value=1e-6, kernel_sizes=None, small_kernel=None, ParC_insert_locs=None,
                 stages_rs=None)


class ParCBlock(Block):
    """The block of ConvNeXt with :class:`mmlk.ops.ParC` as the token mixer.

    Args:
        channels: Number of channels of the map, even.
        size: Native height and width of the map, for which the kernels are made.
        drop_path: Drop rate of stochastic depth.
        layer_scale_init_value: Initial value of layer scale; 0 for no layer scale.
    """

    def __init__(self, channels: int, size: int, drop_path: float, layer_scale_init_value: float):
        super().__init__('gcc_H', ParCOperator(channels // 2, size, 'h'), channels, drop_path, layer_scale_init_value)
        self.gcc_W = ParCOperator(channels // 2, size, 'w')
        for operator in (self.gcc_H, self.gcc_W):
            trunc_normal_(operator.gcc_conv.weight, std=0.02)
            nn.init.zeros_(operator.gcc_conv.bias)

    def mix(self, x: Tensor) -> Tensor:
        return parc(x, self.gcc_H, self.gcc_W)


@MODELS.register_module()
class ParCConvNeXt(ConvNeXt):
    """ConvNeXt with ParC in the last blocks, which therefore have a global receptive field, for images of any size.

    Args:
        arch: A name of ``ARCHS``, or a dict as :class:`ConvNeXt`'s, with ``ParC_insert_locs`` (for each stage
            the index of the first block with ParC; the depth of the stage for none) and ``stages_rs`` (for each stage
            the native side of the maps, for which kernels and embeddings are made). The default is ParC in the last
            third of the last two stages, for images of 224 pixels: 56, 28, 14, 7.

    All other arguments are those of :class:`ConvNeXt` and :class:`BaseBackbone`.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    @staticmethod
    def complete(arch: Arch) -> Dict[str, Any]:
        own = resolve_arch(arch, ARCHS, ('depths', 'dims'), _DEFAULTS, 'ParCConvNeXt')
        first, sizes = own.pop('ParC_insert_locs'), own.pop('stages_rs')
        full = ConvNeXt.complete(own)
        depths, stages = full['depths'], len(full['depths'])
        if first is None:
            first = tuple(2 * depth // 3 if stage >= stages - 2 else depth for stage, depth in enumerate(depths))
        if sizes is None:
            sizes = tuple(56 // 2**stage for stage in range(stages))
        full.update(ParC_insert_locs=first, stages_rs=sizes)
        check_per_stage(full, 'ParC_insert_locs', 'stages_rs', 'depths')
        check_positive(full, 'stages_rs')
        for location, depth, channels in zip(first, depths, full['dims']):
            if not is_integer(location) or not 0 <= location <= depth:
                raise ValueError(f'ParC_insert_locs must be in 0..{depth} in a stage of {depth} blocks, '
                                 f'got {location!r}')
            if location < depth and channels % 2:
                raise ValueError(f'ParC halves the channels, so they must be even; got {channels} in dims')
        return full

    def block(self, arch: Dict[str, Any], stage: int, index: int, drop_path: float, merged: bool) -> Block:
        if index < arch['ParC_insert_locs'][stage]:
            return super().block(arch, stage, index, drop_path, merged)
        return ParCBlock(arch['dims'][stage], arch['stages_rs'][stage], drop_path, arch['layer_scale_init_value'])
