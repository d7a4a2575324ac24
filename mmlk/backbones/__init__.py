from .base import BaseBackbone
from .convnext import ConvNeXt
from .gfnet import GFNet
from .hornet import HorNet
from .mobilenetv2 import MobileNetV2
from .moganet import MogaNet
from .parc_convnext import ParCConvNeXt
from .parc_mobilenetv2 import ParCMobileNetV2
from .parc_mobilevit import ParCNet
from .parc_resnet import ParCResNet
from .pelk import PeLK
from .replknet import RepLKNet
from .repvgg import RepVGG
from .slak import SLaK
from .timm_backbone import TimmBackbone
from .unireplknet import UniRepLKNet

__all__ = ['BaseBackbone', 'ConvNeXt', 'GFNet', 'HorNet', 'MobileNetV2', 'MogaNet', 'ParCConvNeXt', 'ParCMobileNetV2',
           'ParCNet', 'ParCResNet', 'PeLK', 'RepLKNet', 'RepVGG', 'SLaK', 'TimmBackbone', 'UniRepLKNet']
