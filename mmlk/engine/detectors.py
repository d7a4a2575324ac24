"""What detectors of mmdet need beside their config."""
import sys
from typing import Any

import torch
from torch import Tensor, nn


def _in_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    if isinstance(value, (list, tuple)):
        return type(value)(map(_in_float32, value))
    return value


def _float32_inputs(module: nn.Module, args: tuple) -> tuple:
    return _in_float32(args)


def _float32_outputs(module: nn.Module, args: tuple, output: Any) -> Any:
    return _in_float32(output)


def prepare_detector(model: nn.Module) -> None:
    """Make up for two faults of mmdet 3, in place. Calling it again has no effect, and neither has it on other models.

    - Under bfloat16 autocast boxes are computed in float32. mmdet gives anchors and points the dtype of a head's
      predictions, and regions that of the feature maps. bfloat16 has 8 significant bits: a coordinate of 1000 pixels
      would be rounded to a multiple of 4, and boxes that are shifted by their class, as non-maximum suppression does,
      to a multiple of up to 512.
    - ``SSDHead`` predicts: in mmdet 3.3 it asks for ``loss_cls``, which it never had, and ends in an AttributeError.
    """
    if 'mmdet.models' not in sys.modules:
        return
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.dense_heads.ssd_head import SSDHead
    from mmdet.models.roi_heads.bbox_heads.bbox_head import BBoxHead
    from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
    for module in model.modules():
        if isinstance(module, BaseRoIExtractor) and _float32_inputs not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_float32_inputs)
        if isinstance(module, (BaseDenseHead, BBoxHead)) and _float32_outputs not in module._forward_hooks.values():
            module.register_forward_hook(_float32_outputs)
        if isinstance(module, SSDHead) and not hasattr(module, 'loss_cls'):
            module.loss_cls = None
