# ResNeSt-50, 1x on COCO.
# Source: mmdetection configs/resnest/cascade-mask-rcnn_s50_fpn_syncbn-backbone+head_ms-1x_coco.py
_base_ = [
    '_base_/backbones/resnest50.py', '_base_/models/cascade_mask_rcnn_resnest.py',
    '_base_/datasets/coco_instance_640-800_1x.py', '_base_/schedules/det_sgd_1x.py', '_base_/runtime_det.py',
]
model = dict(
    data_preprocessor=dict(mean=[123.68, 116.779, 103.939], std=[58.393, 57.12, 57.375]),
    backbone=dict(_base_.backbone, frozen_stages=1),
    neck=dict(in_channels=_base_.channels))
