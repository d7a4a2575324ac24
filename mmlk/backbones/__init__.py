from .base import BaseBackbone
from .replknet import RepLKNet

__all__ = ['BaseBackbone', 'RepLKNet']
