# MobileNetV2, ImageNet-1K, on COCO as the baseline of ParC-MobileNetV2.
# Source: the README of ParC-Net; the recipe is edgeformer_v2_object_detection configs/
# mobilenetv2/cascade_mask_rcnn_mv2_...py by the author of Fast-ParC.
# mmpretrain's weights stand for its own, which were not published.
_base_ = [
    '_base_/backbones/mobilenetv2.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_parc.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='mobilenetv2_in1k')),
    neck=dict(in_channels=_base_.channels))
