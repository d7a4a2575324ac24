# FocalNet-T (LRF), ImageNet-1K, 1x on COCO.
# Source: FocalNet detection/configs/focalnet/
# mask_rcnn_focalnet_tiny_patch4_mstrain_480-800_adamw_1x_coco_lrf.py
# Trained in mixed precision (--amp).
_base_ = [
    '_base_/backbones/focalnet-t-lrf.py', '_base_/models/mask_rcnn.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_1x_focalnet.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        dense='detection',
        drop_path_rate=0.1,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='focalnet-t-lrf_in1k')),
    neck=dict(in_channels=_base_.channels))
