# FocalNet-S (SRF), ImageNet-1K, 1x on COCO.
# Source: FocalNet detection/configs/focalnet/
# mask_rcnn_focalnet_small_patch4_mstrain_480-800_adamw_1x_coco_srf.py
# Trained in mixed precision (--amp).
_base_ = [
    '_base_/backbones/focalnet-s-srf.py', '_base_/models/mask_rcnn.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_1x_focalnet.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        dense='detection',
        drop_path_rate=0.2,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='focalnet-s-srf_in1k')),
    neck=dict(in_channels=_base_.channels))
