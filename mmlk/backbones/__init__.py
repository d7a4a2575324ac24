from .base import BaseBackbone
from .convnext import ConvNeXt
from .gfnet import GFNet
from .hornet import HorNet
from .replknet import RepLKNet
from .repvgg import RepVGG
from .slak import SLaK
from .unireplknet import UniRepLKNet

__all__ = ['BaseBackbone', 'ConvNeXt', 'GFNet', 'HorNet', 'RepLKNet', 'RepVGG', 'SLaK', 'UniRepLKNet']
