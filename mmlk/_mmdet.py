"""Faults of mmdet 3, repaired in its classes, so that a detector is right wherever it is built and run.

- Under autocast boxes are computed in float32. mmdet gives anchors and points the dtype of a head's predictions, and
  regions that of the feature maps. bfloat16 has 8 significant bits: a coordinate of 1000 pixels would be rounded to a
  multiple of 4, and boxes that are shifted by their class, as non-maximum suppression does, to a multiple of up to
  512. float16 rounds that coordinate to a multiple of 0.5, and the shift passes its largest number: none of those
  boxes would be suppressed.
- ``SSDHead`` predicts: in mmdet 3.3 it asks for ``loss_cls``, which it never had, and ends in an AttributeError.
"""
from functools import wraps
from types import ModuleType
from typing import Any

from mmlk._after_import import after_import


def _in_float32(value: Any) -> Any:
    import torch
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if type(value) in (list, tuple):
        return type(value)(map(_in_float32, value))
    return value


def _predict_in_float32(head: type) -> None:
    """Outputs of a head in float32; everything that is computed from them follows."""
    call = head.__call__

    @wraps(call)
    def wrapper(self, *args, **kwargs):
        return _in_float32(call(self, *args, **kwargs))

    head.__call__ = wrapper


def _compute_in_float32(head: type) -> None:
    """A head of a DETR as a whole in float32: it makes boxes inside its forward, out of a few vectors."""
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
    """Features of regions from maps and regions in float32, returned in the dtype of the maps."""
    call = extractor.__call__

    @wraps(call)
    def wrapper(self, feats, rois, *args, **kwargs):
        return call(self, _in_float32(feats), _in_float32(rois), *args, **kwargs).to(feats[0].dtype)

    extractor.__call__ = wrapper


def _name_loss(head: type) -> None:
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
    """Repair mmdet's classes in this process, whether they are imported already or later; nothing is imported here."""
    for name in _REPAIRS:
        after_import(name, _repair)
