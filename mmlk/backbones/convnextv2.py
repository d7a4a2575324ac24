"""ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders, Woo et al., CVPR 2023, arXiv:2301.00808.

Official code: https://github.com/facebookresearch/ConvNeXt-V2 (MIT; its weights are CC-BY-NC). Parameter names are the
official ones. The official code classifies; code for dense prediction was not published.
"""
from typing import Any, Dict, Optional, Sequence, Set

from torch import Tensor, nn

from mmlk.layers import GRN, ChannelNorm
from mmlk.ops import DepthwiseConv2d
from mmlk.registry import MODELS

from .base import Arch, check_per_stage, check_positive, resolve_arch
from .convnext import Block, ConvNeXt, arch_of


# Appendix A.1 of the paper: atto, femto, pico, nano, tiny, base, large, huge
ARCHS = {
    'A': arch_of((2, 2, 6, 2), 40),
    'F': arch_of((2, 2, 6, 2), 48),
    'P': arch_of((2, 2, 6, 2), 64),
    'N': arch_of((2, 2, 8, 2), 80),
    'T': arch_of((3, 3, 9, 3), 96),
    'B': arch_of((3, 3, 27, 3), 128),
    'L': arch_of((3, 3, 27, 3), 192),
    'H': arch_of((3, 3, 27, 3), 352),
}

_REQUIRED = ('depths', 'dims')
_GROUPED = (3, 3, 27, 3)  # depths of which the official layer decay has three blocks in a layer


class BlockV2(Block):
    """The block of ConvNeXt V2, figure 5 of the paper: that of ConvNeXt with GRN after GELU, without layer scale."""

    def __init__(self, channels: int, drop_path: float):
        super().__init__('dwconv', DepthwiseConv2d(channels, 7), channels, drop_path, 0)
        self.grn = GRN(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.mix(x).permute(0, 2, 3, 1))
        out = self.pwconv2(self.grn(self.act(self.pwconv1(out))))
        return x + self.drop_path(out.permute(0, 3, 1, 2))


@MODELS.register_module()
class ConvNeXtV2(ConvNeXt):
    """ConvNeXt V2 as a feature extractor, with a norm on each returned map.

    GRN divides by the mean response of the whole map, so a feature depends on the whole image. As officially, the scale
    and the bias of GRN have no weight decay.

    Args:
        arch: A name of ``ARCHS`` ('A' is the official 'atto', and so on), or a dict with ``depths`` and ``dims`` (one
            per stage).
        norm_cfg: Norm layer config of the norms on the returned maps; None for LayerNorm over the channels. The others
            are LayerNorms and GRN.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, dims[i], H // s, W // s), s = 4, 8, 16, 32. Rows and
        columns that do not fill a patch are cropped, as officially. H and W must be at least the s of the last stage.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    def __init__(self, arch: Arch = 'T', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: Optional[dict] = None,
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        if norm_cfg is None:
            norm_cfg = dict(type=ChannelNorm, eps=1e-6)
        super().__init__(arch, in_channels=in_channels, out_indices=out_indices, drop_path_rate=drop_path_rate,
                         frozen_stages=frozen_stages, norm_cfg=norm_cfg, norm_eval=norm_eval, with_cp=with_cp,
                         merged=merged, init_cfg=init_cfg)
        self._grouped = tuple(self.complete(arch)['depths']) == _GROUPED

    @staticmethod
    def complete(arch: Arch) -> Dict[str, Any]:
        """Checks the arch and returns it as a new dict."""
        full = resolve_arch(arch, ARCHS, _REQUIRED, {}, 'ConvNeXtV2')
        check_per_stage(full, *_REQUIRED)
        check_positive(full, *_REQUIRED)
        return full

    def output_norm(self, arch: Dict[str, Any], stage: int) -> nn.Module:
        return self.norm_layer(arch['dims'][stage])

    def block(self, arch: Dict[str, Any], stage: int, index: int, drop_path: float, merged: bool) -> nn.Module:
        return BlockV2(arch['dims'][stage], drop_path)

    def blocks_per_layer(self, stage: int) -> int:
        """Returns the number of blocks of a stage that have the same layer id, as ``optim_factory.py``.

        It is three with the depths 3, 3, 27, 3 ('group') and one with all others ('single'). Officially the stem has
        the id of the first block with the latter; here it has 0.
        """
        return 3 if self._grouped else 1

    def no_weight_decay(self) -> Set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(('.grn.gamma', '.grn.beta'))}

    def resized_weight(self, name: str, value: Tensor) -> Tensor:
        """Gives GRN's vectors of other toolboxes the four dimensions of the official ones."""
        if not name.endswith(('.grn.gamma', '.grn.beta')) or value.dim() != 1:
            return value
        return value[None, None, None]
