from .base import BaseBackbone
from .convnext import ConvNeXt
from .replknet import RepLKNet
from .repvgg import RepVGG

__all__ = ['BaseBackbone', 'ConvNeXt', 'RepLKNet', 'RepVGG']
