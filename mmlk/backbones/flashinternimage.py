"""FlashInternImage, InternImage with DCNv4: Efficient Deformable ConvNets, Xiong et al., CVPR 2024, arXiv:2401.06197.

Official code: https://github.com/OpenGVLab/DCNv4 (MIT). Parameter names are the official ones.
"""
from typing import Any, Dict, Optional

from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d, dcnv4
from mmlk.ops.deformable import padded_to_8
from mmlk.registry import MODELS

from .base import Arch, check_flags
from .internimage import DEFAULTS, InternImage, arch_of, complete_arch

# From the official segmentation and detection configs.
ARCHS = {
    'T': arch_of(64, (4, 4, 18, 4), 4, offset_scale=1.0),
    'S': arch_of(80, (4, 4, 21, 4), 5, post_norm=True, offset_scale=1.0, dw_kernel_size=3),
    'B': arch_of(112, (4, 4, 21, 4), 7, post_norm=True, offset_scale=0.5, dw_kernel_size=3),
    'L': arch_of(160, (5, 5, 22, 5), 10, post_norm=True, offset_scale=2.0, dw_kernel_size=3, dcn_output_bias=True,
                 mlp_fc2_bias=True),
}

_DEFAULTS = {**DEFAULTS, 'offset_scale': 0.5, 'dcn_output_bias': False, 'mlp_fc2_bias': False}
_TAPS = 9


class DCNv4(nn.Module):
    """Deformable convolution v4 between two linear layers; section 3 of the paper.

    A linear layer, after a depthwise convolution if asked, computes offsets and weights of 3x3 samples for each group
    of channels. There is no softmax over the weights.

    Args:
        channels: Number of channels of the map.
        groups: Number of groups of channels, each of which has its own offsets and weights.
        offset_scale: Factor of the offsets and of the distances of the samples.
        dw_kernel_size: Size of the depthwise convolution; None for no convolution.
        output_bias: Whether the last linear layer has a bias.

    Shape:
        Input: (N, C, H, W). Output: (N, H, W, C).
    """

    def __init__(self, channels: int, groups: int, offset_scale: float, dw_kernel_size: Optional[int],
                 output_bias: bool):
        super().__init__()
        self.groups, self.offset_scale = groups, offset_scale
        if dw_kernel_size is not None:
            self.offset_mask_dw = DepthwiseConv2d(channels, dw_kernel_size)
        self.dw_kernel_size = dw_kernel_size
        # as officially; what is over is not read
        self.offset_mask = nn.Linear(channels, padded_to_8(3 * groups * _TAPS))
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels, bias=output_bias)

    def reset_parameters(self) -> None:
        """Sets the initial values: at first all samples lie on the grid and have no weight."""
        for layer in (self.offset_mask, self.value_proj, self.output_proj):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.offset_mask.weight)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        values = self.value_proj(x.permute(0, 2, 3, 1))
        query = x if self.dw_kernel_size is None else self.offset_mask_dw(x)
        offset_mask = self.offset_mask(query.permute(0, 2, 3, 1))
        return self.output_proj(dcnv4(values, offset_mask, groups=self.groups, offset_scale=self.offset_scale))


@MODELS.register_module()
class FlashInternImage(InternImage):
    """FlashInternImage as a feature extractor: :class:`InternImage` with DCNv4.

    Args:
        arch: A name of ``ARCHS``, or a dict as that of :class:`InternImage`, with ``dw_kernel_size`` of the convolution
            before offsets and weights (None by default: no convolution), ``dcn_output_bias`` (whether the last layer of
            DCNv4 has a bias) and ``mlp_fc2_bias`` (whether the last one of the MLP has).
        norm_cfg: Norm layer config of the norms in the stem and in the downsampling; None for LayerNorm over the
            channels, as officially. The others are LayerNorms: published weights hold no other.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, channels * 2**i, ceil(H / s), ceil(W / s)), s = 4, 8, 16,
        32.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    @staticmethod
    def complete(arch: Arch) -> Dict[str, Any]:
        """Checks the arch and returns it as a dict with all default values."""
        full = complete_arch(arch, ARCHS, _DEFAULTS, 'FlashInternImage')
        check_flags(full, 'dcn_output_bias', 'mlp_fc2_bias')
        if full['center_feature_scale']:
            raise ValueError('center_feature_scale: the official FlashInternImage has none in its operator')
        return full

    def mixer(self, arch: Dict[str, Any], stage: int, channels: int) -> nn.Module:
        """Returns the token mixer of a block of a stage."""
        return DCNv4(channels, arch['groups'][stage], arch['offset_scale'], arch['dw_kernel_size'],
                     arch['dcn_output_bias'])
