"""Corrects errors of mmdet 3 by changing its classes, so that every detector in the process is correct.

- Under autocast, boxes are computed in float32. mmdet gives anchors and points the dtype of a head's predictions, and
  regions that of the feature maps. bfloat16 has 8 significant bits, so a coordinate of 1000 pixels would be rounded to
  a multiple of 4. Non-maximum suppression adds an offset per class to boxes; these would be rounded to a multiple of up
  to 512. float16 rounds the coordinate to a multiple of 0.5, and the offset overflows, so that no box would be
  suppressed.
- ``SSDHead`` can predict. In mmdet 3.3 it uses an attribute ``loss_cls`` that it does not have, which is an
  AttributeError.
"""
from functools import wraps
from types import ModuleType
from typing import Any

from mmlk._after_import import after_import


def _in_float32(value: Any) -> Any:
    """Returns a tensor, or the tensors in nested lists and tuples, in float32 if they are in half precision."""
    import torch
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if type(value) in (list, tuple):
        return type(value)(map(_in_float32, value))
    return value


def _predict_in_float32(head: type) -> None:
    """Converts the outputs of a head to float32. What is computed from them is in float32, too."""
    call = head.__call__

    @wraps(call)
    def wrapper(self, *args, **kwargs):
        return _in_float32(call(self, *args, **kwargs))

    head.__call__ = wrapper


def _compute_in_float32(head: type) -> None:
    """Computes a DETR head in float32, because it computes boxes in its forward pass. Its inputs are small."""
    call = head.__call__

    @wraps(call)
    def wrapper(self, *args, **kwargs):
        import torch
        device = next(self.parameters()).device.type
        if not torch.is_autocast_enabled(device):
            return call(self, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return call(self, *_in_float32(args), **{key: _in_float32(value) for key, value in kwargs.items()})

    head.__call__ = wrapper


def _extract_in_float32(extractor: type) -> None:
    """Extracts the features of regions in float32, and returns them in the dtype of the maps."""
    call = extractor.__call__

    @wraps(call)
    def wrapper(self, feats, rois, *args, **kwargs):
        return call(self, _in_float32(feats), _in_float32(rois), *args, **kwargs).to(feats[0].dtype)

    extractor.__call__ = wrapper


def _name_loss(head: type) -> None:
    """Adds the missing attribute ``loss_cls``."""
    init = head.__init__

    @wraps(init)
    def wrapper(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if not hasattr(self, 'loss_cls'):
            self.loss_cls = None

    head.__init__ = wrapper


def _repair(module: ModuleType) -> None:
    name, repair = _REPAIRS[module.__name__]
    cls = getattr(module, name)
    if '_repaired' not in vars(cls):
        repair(cls)
        cls._repaired = True


_REPAIRS = {
    'mmdet.models.dense_heads.base_dense_head': ('BaseDenseHead', _predict_in_float32),
    'mmdet.models.dense_heads.detr_head': ('DETRHead', _compute_in_float32),
    'mmdet.models.dense_heads.ssd_head': ('SSDHead', _name_loss),
    'mmdet.models.roi_heads.bbox_heads.bbox_head': ('BBoxHead', _predict_in_float32),
    'mmdet.models.roi_heads.roi_extractors.base_roi_extractor': ('BaseRoIExtractor', _extract_in_float32),
}


def repair() -> None:
    """Corrects the classes in this process, now or when they are imported. Nothing is imported here."""
    for name in _REPAIRS:
        after_import(name, _repair)
