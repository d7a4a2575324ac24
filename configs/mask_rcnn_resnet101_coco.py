# ResNet-101 on COCO.
# Source: mmdetection configs/mask_rcnn/mask-rcnn_r101_fpn_ms-poly-3x_coco.py, which keeps masks as polygons
_base_ = [
    '_base_/backbones/resnet101.py', '_base_/models/mask_rcnn.py',
    '_base_/datasets/coco_instance_640-800.py', '_base_/schedules/det_sgd_3x.py', '_base_/runtime_det.py',
]
model = dict(backbone=_base_.backbone, neck=dict(in_channels=_base_.channels))
train_pipeline = [
    dict(step, poly2mask=False) if step.type == 'LoadAnnotations' else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
