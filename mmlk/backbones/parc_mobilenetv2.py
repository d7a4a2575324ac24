"""ParC-MobileNetV2: MobileNetV2 with global circular convolutions in the late blocks of its rows.

ParC-Net, Zhang et al., ECCV 2022, arXiv:2203.03952. Official code: https://github.com/hkzhang91/ParC-Net (no licence:
only its parameter names are followed). The blocks with ParC have the official names, all others those of
:class:`MobileNetV2`. :func:`mmlk.weights.load` converts the official names of the latter, which are torchvision's.
"""
from typing import Any, Dict, Optional, Sequence

from timm.layers import DropPath
from torch import Tensor, nn

from mmlk.ops.parc import ParCOperator, parc
from mmlk.registry import MODELS
from mmlk.reparam.branches import NormLayer

from .base import Arch, check_positive, check_sequences, is_integer
from .mobilenetv2 import _DEFAULTS, MobileNetV2, Place, complete

# For each row: index of the first block with ParC (a row with fewer blocks has none), and side of the maps.
_LOCATIONS, _SIDES = (1, 2, 3, 2, 2, 2, 1), (112, 56, 28, 14, 14, 7, 7)

ARCHS = {'1.0': dict(ParC_insert_locs=_LOCATIONS, stages_rs=_SIDES)}


class ParCInvertedResidual(nn.Module):
    """Pointwise layer, ParC, pointwise layer without activation, and a shortcut.

    The state dict keys are the official ones: ``pw_expand``, ``gcc_H``, ``gcc_W``, ``bn``, ``pw_linear``.

    Args:
        place: Position of the block.
        size: Native height and width of the map, for which the kernels are made.
        use_pe: Whether to add position embeddings.
        norm_layer: A function that takes a number of channels and returns a norm layer.
        drop_path: Drop rate of stochastic depth.
    """

    def __init__(self, place: Place, size: int, use_pe: bool, norm_layer: NormLayer, drop_path: float):
        super().__init__()
        hidden = place.hidden_channels
        self.pw_expand = nn.Sequential(nn.Conv2d(place.in_channels, hidden, 1, bias=False), norm_layer(hidden),
                                       nn.ReLU6(inplace=True))
        self.gcc_H = ParCOperator(hidden // 2, size, 'h', use_pe=use_pe)
        self.gcc_W = ParCOperator(hidden // 2, size, 'w', use_pe=use_pe)
        for operator in (self.gcc_H, self.gcc_W):
            nn.init.kaiming_normal_(operator.gcc_conv.weight, mode='fan_out', nonlinearity='relu')
            nn.init.zeros_(operator.gcc_conv.bias)
        self.bn = norm_layer(hidden)
        self.act = nn.ReLU6(inplace=True)
        self.pw_linear = nn.Sequential(nn.Conv2d(hidden, place.out_channels, 1, bias=False),
                                       norm_layer(place.out_channels))
        self.shortcut = place.shortcut
        if place.shortcut:
            self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out = self.pw_linear(self.act(self.bn(parc(self.pw_expand(x), self.gcc_H, self.gcc_W))))
        return x + self.drop_path(out) if self.shortcut else out


@MODELS.register_module()
class ParCMobileNetV2(MobileNetV2):
    """MobileNetV2 with ParC in the last blocks, which therefore have a global receptive field, for images of any size.

    Only the first block with ParC of each row adds position embeddings, as officially. The last map has 320 channels.
    The official dense prediction uses the 1280 channels of the pointwise layer after it.

    Args:
        arch: A name of ``ARCHS``, or a dict as :class:`MobileNetV2`'s, with ``ParC_insert_locs`` (for each row the
            index of the first block with ParC; the number of blocks for none) and ``stages_rs`` (for each row the
            native side of the maps, for which kernels and embeddings are made).

    All other arguments are those of :class:`MobileNetV2` and :class:`BaseBackbone`.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    def __init__(self, arch: Arch = '1.0', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 strides: Sequence[int] = (2, 2, 2, 2), dilations: Sequence[int] = (1, 1, 1, 1),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: dict = dict(type='BN'),
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        super().__init__(arch, in_channels=in_channels, out_indices=out_indices, strides=strides, dilations=dilations,
                         drop_path_rate=drop_path_rate, frozen_stages=frozen_stages, norm_cfg=norm_cfg,
                         norm_eval=norm_eval, with_cp=with_cp, merged=merged, init_cfg=init_cfg)

    @staticmethod
    def complete(arch: Arch) -> Dict[str, Any]:
        defaults = dict(_DEFAULTS, ParC_insert_locs=_LOCATIONS, stages_rs=_SIDES)
        full = complete(arch, ARCHS, defaults, 'ParCMobileNetV2')
        rows, locations = full['arch_settings'], full['ParC_insert_locs']
        for key in ('ParC_insert_locs', 'stages_rs'):
            check_sequences(full, key)
            if len(full[key]) != len(rows):
                raise ValueError(f'{key} must have one entry per row of arch_settings, '
                                 f'got {len(full[key])} for {len(rows)}')
        check_positive(full, 'stages_rs')
        for location, (_, _, blocks, stride) in zip(locations, rows):
            if not is_integer(location) or not stride - 1 <= location <= blocks:
                raise ValueError(f'ParC_insert_locs must be in {stride - 1}..{blocks} in a row of {blocks} blocks and '
                                 f'stride {stride}, got {location!r}')
        return full

    def block(self, arch: Dict[str, Any], place: Place, drop_path: float, merged: bool) -> nn.Module:
        first, size = arch['ParC_insert_locs'][place.row], arch['stages_rs'][place.row]
        if place.block < first:
            return super().block(arch, place, drop_path, merged)
        if place.hidden_channels % 2:
            raise ValueError('ParC halves the channels, so they must be even; widen_factor and arch_settings give '
                             f'{place.hidden_channels}')
        return ParCInvertedResidual(place, size, place.block == first, self.norm_layer, drop_path)
