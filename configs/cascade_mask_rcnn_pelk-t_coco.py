# PeLK-T, ImageNet-1K, on COCO.
# Source: the PeLK paper, table 3; it names Cascade Mask R-CNN and 3x, all else is inferred: ConvNeXt's of
# the same size. No code and no weights were published: pretrain, sparsely as SLaK, and set
# model.backbone.init_cfg.
_base_ = [
    '_base_/backbones/pelk-t.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_layer-decay.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.4),
    neck=dict(in_channels=_base_.channels))
