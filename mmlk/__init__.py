"""Large-kernel convolutional backbones for OpenMMLab's dense-prediction toolboxes."""
from mmlk import _mmcv_ops, _mmdet, _mmpretrain
from mmlk._checkpoints import allow_mmengine_types

__version__ = '0.2.0'

allow_mmengine_types()
_mmcv_ops.guard()
_mmdet.repair()
_mmpretrain.repair()
