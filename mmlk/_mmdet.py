"""Corrects errors of mmdet 3 by changing its classes, so that every detector in the process is correct.

Classes of mmcv and mmseg on which a detector's head is built are changed too.

- Under autocast, boxes are computed in float32. mmdet gives anchors and points the dtype of a head's predictions, and
  regions that of the feature maps. bfloat16 has 8 significant bits, so a coordinate of 1000 pixels would be rounded to
  a multiple of 4. Non-maximum suppression adds an offset per class to boxes; these would be rounded to a multiple of up
  to 512. float16 rounds the coordinate to a multiple of 0.5, and the offset overflows, so that no box would be
  suppressed.
- ``SSDHead`` can predict. In mmdet 3.3 it uses an attribute ``loss_cls`` that it does not have, which is an
  AttributeError.
- Mask2Former's pixel decoder computes with the sizes of maps as Python numbers. mmdet and mmcv make tensors of them and
  read their values again in each layer. That needs values, which a model on the meta device or one that is exported
  does not have, and waits for the GPU. Like the official code, it computes in float32 under autocast.
- Predictions are matched with objects in float32 under autocast, as in the official code of Mask2Former.
- mmseg's ``Mask2FormerHead`` predicts in windows (``mode='slide'``), where mmseg resizes the prediction of each window
  to the whole image, and in the mode 'tensor', where mmseg calls it without the argument that it ignores.
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


def _predict_in_float32(head: Any) -> None:
    """Converts the outputs of a head to float32. What is computed from them is in float32, too."""
    call = head.__call__

    @wraps(call)
    def wrapper(self, *args, **kwargs):
        return _in_float32(call(self, *args, **kwargs))

    head.__call__ = wrapper


def _compute_in_float32(head: Any) -> None:
    """Computes a module in float32. A DETR head computes boxes in its forward pass, and its inputs are small."""
    call = head.__call__

    @wraps(call)
    def wrapper(self, *args, **kwargs):
        import torch
        device = next(self.parameters()).device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
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


def _name_loss(head: Any) -> None:
    """Adds the missing attribute ``loss_cls``."""
    init = head.__init__

    @wraps(init)
    def wrapper(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if not hasattr(self, 'loss_cls'):
            self.loss_cls = None

    head.__init__ = wrapper


def _match_in_float32(assigner: Any) -> None:
    """Computes the costs of pairs without autocast."""
    assign = assigner.assign

    @wraps(assign)
    def wrapper(self, pred_instances, gt_instances, *args, **kwargs):
        import torch
        with torch.autocast(gt_instances.labels.device.type, enabled=False):
            return assign(self, pred_instances, gt_instances, *args, **kwargs)

    assigner.assign = wrapper


def _decode_by_numbers(decoder: Any) -> None:
    """Replaces the forward pass of Mask2Former's pixel decoder by one in which sizes of maps are Python numbers."""

    @wraps(decoder.forward)
    def forward(self, feats):
        import torch
        from torch.nn import functional as F
        last = self.num_input_levels - 1
        sizes = [tuple(feats[last - index].shape[2:]) for index in range(self.num_encoder_levels)]
        queries, positions, centres = [], [], []
        for index, (height, width) in enumerate(sizes):
            level = feats[last - index]
            position = self.postional_encoding(level.new_zeros((level.shape[0], height, width), dtype=torch.bool))
            position = position + self.level_encoding.weight[index][:, None, None]
            x, y = self.point_generator.single_level_grid_priors(
                (height, width), last - index, device=level.device).unbind(-1)
            stride = self.strides[last - index]
            queries.append(self.input_convs[index](level).flatten(2).transpose(1, 2))
            positions.append(position.flatten(2).transpose(1, 2))
            centres.append(torch.stack([x / (width * stride), y / (height * stride)], dim=-1))
        points = torch.cat(centres)[None, :, None].expand(feats[0].shape[0], -1, self.num_encoder_levels, -1)
        memory = self.encoder(
            query=torch.cat(queries, dim=1), query_pos=torch.cat(positions, dim=1), key_padding_mask=None,
            spatial_shapes=sizes, level_start_index=None, valid_ratios=None, reference_points=points)
        levels = memory.transpose(1, 2).split([height * width for height, width in sizes], dim=2)
        outs = [level.unflatten(2, size) for level, size in zip(levels, sizes)]
        for index in reversed(range(self.num_input_levels - self.num_encoder_levels)):
            lateral = self.lateral_convs[index](feats[index])
            above = F.interpolate(outs[-1], size=lateral.shape[2:], mode='bilinear', align_corners=False)
            outs.append(self.output_convs[index](lateral + above))
        return self.mask_feature(outs[-1]), outs[:self.num_outs]

    decoder.forward = forward
    _compute_in_float32(decoder)


def _has_kernel(operators: ModuleType, device: Any) -> bool:
    """Returns whether mmcv has a kernel of the attention for a device. mmlk._mmcv_ext has its form in PyTorch."""
    return (device.type not in ('cpu', 'meta')
            and operators.ext_module.ms_deform_attn_forward.__module__ != 'mmlk._mmcv_ext')


def _attend_by_numbers(attention: Any) -> None:
    """Makes multi-scale deformable attention accept sizes of maps as a list of (height, width)."""
    forward = attention.forward

    @wraps(forward)
    def wrapper(self, query, key=None, value=None, identity=None, query_pos=None, key_padding_mask=None,
                reference_points=None, spatial_shapes=None, level_start_index=None, **kwargs):
        import torch
        from mmcv.ops import multi_scale_deform_attn as ops
        if isinstance(spatial_shapes, list) and _has_kernel(ops, query.device):
            spatial_shapes = torch.tensor(spatial_shapes, device=query.device)
            level_start_index = spatial_shapes.prod(1).cumsum(0) - spatial_shapes.prod(1)
        if not isinstance(spatial_shapes, list):
            return forward(self, query, key, value, identity, query_pos, key_padding_mask, reference_points,
                           spatial_shapes, level_start_index, **kwargs)
        values = self.value_proj(query if value is None else value).unflatten(2, (self.num_heads, -1))
        asking = query if query_pos is None else query + query_pos
        shape = (self.num_heads, self.num_levels, self.num_points)
        weights = self.attention_weights(asking).unflatten(2, (self.num_heads, -1)).softmax(-1)
        offsets = self.sampling_offsets(asking).unflatten(2, (*shape, 2)).unbind(3)
        places = torch.stack([torch.stack([offset[..., 0] / width, offset[..., 1] / height], dim=-1)
                              for offset, (height, width) in zip(offsets, spatial_shapes)], dim=3)
        places = reference_points[:, :, None, :, None] + places
        output = ops.multi_scale_deformable_attn_pytorch(values, spatial_shapes, places,
                                                         weights.unflatten(3, shape[1:]))
        return self.dropout(self.output_proj(output)) + (query if identity is None else identity)

    attention.forward = wrapper


def _predict_in_windows(head: Any) -> None:
    """Resizes predictions to the size of what the network has seen, and makes an unused argument optional."""
    forward, predict = head.forward, head.predict

    @wraps(forward)
    def forward_wrapper(self, x, batch_data_samples=None):
        return forward(self, x, batch_data_samples)

    @wraps(predict)
    def predict_wrapper(self, x, batch_img_metas, test_cfg):
        meta = batch_img_metas[0]
        sizes = [tuple(meta[key][:2]) for key in ('pad_shape', 'img_shape') if key in meta]
        stride = self.pixel_decoder.strides[0]
        # a window has its size as img_shape, and pad_shape is that of the image
        size = min(sizes, key=lambda size: sum(abs(side / stride - cells) for side, cells in zip(size, x[0].shape[2:])))
        return predict(self, x, [dict(meta, pad_shape=size), *batch_img_metas[1:]], test_cfg)

    head.forward, head.predict = forward_wrapper, predict_wrapper


def _repair(module: ModuleType) -> None:
    name, repair = _REPAIRS[module.__name__]
    cls = getattr(module, name)
    if '_repaired' not in vars(cls):
        repair(cls)
        cls._repaired = True


_REPAIRS = {
    'mmcv.ops.multi_scale_deform_attn': ('MultiScaleDeformableAttention', _attend_by_numbers),
    'mmdet.models.dense_heads.base_dense_head': ('BaseDenseHead', _predict_in_float32),
    'mmdet.models.dense_heads.detr_head': ('DETRHead', _compute_in_float32),
    'mmdet.models.dense_heads.ssd_head': ('SSDHead', _name_loss),
    'mmdet.models.layers.msdeformattn_pixel_decoder': ('MSDeformAttnPixelDecoder', _decode_by_numbers),
    'mmdet.models.roi_heads.bbox_heads.bbox_head': ('BBoxHead', _predict_in_float32),
    'mmdet.models.roi_heads.roi_extractors.base_roi_extractor': ('BaseRoIExtractor', _extract_in_float32),
    'mmdet.models.task_modules.assigners.hungarian_assigner': ('HungarianAssigner', _match_in_float32),
    'mmseg.models.decode_heads.mask2former_head': ('Mask2FormerHead', _predict_in_windows),
}


def repair() -> None:
    """Corrects the classes in this process, now or when they are imported. Nothing is imported here."""
    for name in _REPAIRS:
        after_import(name, _repair)
