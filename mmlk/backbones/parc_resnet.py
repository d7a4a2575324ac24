"""ParC-ResNet: ResNet with global circular convolutions in its late blocks.

ParC-Net, Zhang et al., ECCV 2022, arXiv:2203.03952. Official code: https://github.com/hkzhang91/ParC-Net (no licence:
only its parameter names are followed). ResNet: He et al., CVPR 2016, arXiv:1512.03385, with the stride in the 3x3
convolutions.
"""
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mmlk.ops.parc import GlobalConv, ParCOperator, parc
from mmlk.registry import MODELS
from mmlk.reparam.branches import NormLayer

from .base import Arch, BaseBackbone, check_per_stage, check_positive, is_integer, resolve_arch

ARCHS = {'50': dict(layers=(3, 4, 6, 3), parc_insert_locs=(3, 4, 3, 2))}

_DEFAULTS = dict(planes=(64, 128, 256, 512), stages_rs=(56, 28, 14, 7))
_REQUIRED = ('layers', 'parc_insert_locs')
_EXPANSION = 4


def _complete(arch: Arch) -> Dict[str, Any]:
    """Checks the arch and returns it as a dict with all default values."""
    full = resolve_arch(arch, ARCHS, _REQUIRED, _DEFAULTS, 'ParCResNet')
    check_per_stage(full, *_REQUIRED, *_DEFAULTS)
    check_positive(full, 'layers', *_DEFAULTS)
    for location, depth, planes in zip(full['parc_insert_locs'], full['layers'], full['planes']):
        if not is_integer(location) or not 1 <= location <= depth:  # the first block changes the shape of the map
            raise ValueError(f'parc_insert_locs must be in 1..{depth} in a stage of {depth} blocks, got {location!r}')
        if location < depth and planes % 2:
            raise ValueError(f'ParC halves the channels, so they must be even; got {planes} in planes')
    return full


class Bottleneck(nn.Module):
    """The bottleneck of ResNet (figure 5 of its paper): pointwise layer, 3x3 or ParC, pointwise layer, shortcut.

    The state dict keys are those of torchvision and the official code: ``conv1``, ``bn1``, ``conv2`` or ``parc_H`` and
    ``parc_W``, ``bn2``, ``conv3``, ``bn3``, ``downsample``. ParC has dense kernels: each output channel depends on all
    channels of its half.

    Args:
        in_channels: Number of channels of the input.
        planes: Number of hidden channels; the output has four times as many.
        stride: Stride of the 3x3 convolution.
        size: Native height and width of the map for ParC; None for a 3x3 convolution.
        norm_layer: A function that takes a number of channels and returns a norm layer.
        drop_path: Drop rate of stochastic depth.
    """

    def __init__(self, in_channels: int, planes: int, stride: int, size: Optional[int], norm_layer: NormLayer,
                 drop_path: float):
        super().__init__()
        out_channels = _EXPANSION * planes
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = norm_layer(planes)
        self.global_kernel = size is not None
        if self.global_kernel:
            self.parc_H = ParCOperator(planes // 2, size, 'h', groups=1)
            self.parc_W = ParCOperator(planes // 2, size, 'w', groups=1)
        else:
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = norm_layer(planes)
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                                            norm_layer(out_channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = parc(out, self.parc_H, self.parc_W) if self.global_kernel else self.conv2(out)
        out = self.bn3(self.conv3(self.relu(self.bn2(out))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(shortcut + self.drop_path(out))


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, GlobalConv)):
        nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')


@MODELS.register_module()
class ParCResNet(BaseBackbone):
    """ResNet with ParC in the last blocks, which therefore have a global receptive field, for images of any size.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``layers`` (blocks per stage) and ``parc_insert_locs`` (for each
            stage the index of the first block with ParC, at least 1; the depth of the stage for none) and optionally
            ``planes`` (per stage, the channels inside, a quarter of the output's; the stem has those of the first) and
            ``stages_rs`` (per stage, the side of the maps that kernels and embeddings are made for).
        frozen_stages: As in :class:`BaseBackbone`; 1 in the official dense prediction.
        norm_eval: As in :class:`BaseBackbone`; True in the official dense prediction.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, 4 * planes[i], ceil(H / s), ceil(W / s)), s = 4, 8, 16,
        32. H and W may have any value.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    def __init__(self, arch: Arch = '50', in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.0, frozen_stages: int = -1, norm_cfg: dict = dict(type='BN'),
                 norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        full = _complete(arch)
        layers, planes = full['layers'], full['planes']
        super().__init__([_EXPANSION * p for p in planes], in_channels=in_channels, out_indices=out_indices,
                         drop_path_rate=drop_path_rate, frozen_stages=frozen_stages, norm_cfg=norm_cfg,
                         norm_eval=norm_eval, with_cp=with_cp, merged=merged, init_cfg=init_cfg)
        width = planes[0]
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = self.norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        rates = iter(torch.linspace(0, drop_path_rate, sum(layers), device='cpu').tolist())
        for i in range(self.num_stages):
            stage = nn.Sequential()
            for j in range(layers[i]):
                size = full['stages_rs'][i] if j >= full['parc_insert_locs'][i] else None
                stage.append(Bottleneck(width, planes[i], 1 if j or not i else 2, size, self.norm_layer, next(rates)))
                width = _EXPANSION * planes[i]
            self.add_module(f'layer{i + 1}', stage)
        self.apply(_init)
        self.finish()

    def _stages(self) -> List[nn.Sequential]:
        return [self._modules[f'layer{i + 1}'] for i in range(self.num_stages)]

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        return self.run_stages(self.maxpool(self.relu(self.bn1(self.conv1(x)))), self._stages())

    def parts(self, stage_id: int) -> List[nn.Module]:
        return [self._modules[f'layer{stage_id}']] if stage_id else [self.conv1, self.bn1]

    @property
    def num_layers(self) -> int:
        return sum(map(len, self._stages()))

    def layer_of(self, name: str) -> int:
        """Returns the layer id of a parameter. Each block is a layer.

        The official constructor only supports the names of ConvNeXt, so there is no official id for ResNet.
        """
        stage, block, *_ = name.split('.')
        if not stage.startswith('layer'):
            return 0
        before = self._stages()[:int(stage[len('layer'):]) - 1]
        return sum(map(len, before)) + 1 + int(block)
