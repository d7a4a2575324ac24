# RepViT-M1.5, ImageNet-1K, 1x on COCO.
# Source: RepViT detection/configs/mask_rcnn_repvit_m1_5_fpn_1x_coco.py
_base_ = [
    '_base_/backbones/repvit-m1-5.py', '_base_/models/mask_rcnn.py',
    '_base_/datasets/coco_instance_800.py', '_base_/schedules/det_adamw_1x_repvit.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='repvit-m1-5_in1k')),
    neck=dict(in_channels=_base_.channels))
