# ResNet-50 on COCO.
# Source: mmdetection configs/cascade_rcnn/cascade-mask-rcnn_r50_fpn_ms-3x_coco.py
_base_ = [
    '_base_/backbones/resnet50.py', '_base_/models/cascade_mask_rcnn.py',
    '_base_/datasets/coco_instance_640-800.py', '_base_/schedules/det_sgd_3x.py', '_base_/runtime_det.py',
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels))
