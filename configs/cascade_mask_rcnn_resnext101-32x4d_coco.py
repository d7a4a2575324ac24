# ResNeXt-101-32x4d on COCO.
# Source: mmdetection configs/cascade_rcnn/cascade-mask-rcnn_x101-32x4d_fpn_ms-3x_coco.py
_base_ = [
    '_base_/backbones/resnext101-32x4d.py', '_base_/models/cascade_mask_rcnn.py',
    '_base_/datasets/coco_instance_640-800.py', '_base_/schedules/det_sgd_3x.py', '_base_/runtime_det.py',
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels))
