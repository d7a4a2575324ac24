"""Layers that are used by several families of backbones."""
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from mmlk.registry import MODELS


@MODELS.register_module()
class ChannelNorm(LayerNorm2d):
    """LayerNorm over the channels of a map, (N, C, H, W). The output has the memory format of the input.

    Necks and heads take it as ``norm_cfg=dict(type='mmlk.ChannelNorm')``. mmcv then sets its eps to 1e-5 and names it
    ``ln``.
    """

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        out = super().forward(x)
        return out if channels_last else out.contiguous()


def init_by_fan_out(module: nn.Module) -> None:
    """Initializes a convolution: normal weights of the variance 2 / (kernel elements * outputs / groups), zero bias.

    Other modules are not changed. For ``nn.Module.apply``.
    """
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out)**0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class GRN(nn.Module):
    """Global response normalization of ConvNeXt V2, arXiv:2301.00808.

    Args:
        channels: Number of channels.
        bias: Whether there is a bias ``beta``. Merging folds it into the next layer.
        channels_first: Whether maps are (N, C, H, W).

    Shape:
        Input and output: (N, H, W, C), or (N, C, H, W) with ``channels_first``.
    """

    def __init__(self, channels: int, bias: bool = True, channels_first: bool = False):
        super().__init__()
        shape = (1, channels, 1, 1) if channels_first else (1, 1, 1, channels)
        self.gamma = nn.Parameter(torch.zeros(shape))
        self.beta = nn.Parameter(torch.zeros(shape)) if bias else None
        self.channel_dim, self.map_dims = (1, (2, 3)) if channels_first else (3, (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        response = torch.linalg.vector_norm(x, dim=self.map_dims, keepdim=True)
        response = response / (response.mean(self.channel_dim, keepdim=True) + 1e-6)
        # under autocast, norms are computed in float32, but the map keeps its dtype
        out = x * (self.gamma * response + 1).to(x.dtype)
        return out if self.beta is None else out + self.beta.to(x.dtype)


class SEBlock(nn.Module):
    """Squeeze-and-excitation, arXiv:1709.01507: multiplies each channel by a gate computed from the means over the map.

    Args:
        channels: Number of input and output channels.
        inner_channels: Number of hidden channels.

    Shape:
        Input and output: (N, C, H, W).
    """

    def __init__(self, channels: int, inner_channels: int):
        super().__init__()
        self.down = nn.Conv2d(channels, inner_channels, 1)
        self.up = nn.Conv2d(inner_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # the official code pools a square window: this is the same for square maps, and an error for most others
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
