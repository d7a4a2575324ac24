# OverLoCK-S, ImageNet-1K, on COCO.
# Source: OverLoCK detection/configs/maskrcnn_overlock/mask_rcnn_overlock_s_in1k_fpn_3x_coco.py
_base_ = [
    '_base_/backbones/overlock-s.py', '_base_/models/mask_rcnn.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_swin.py', '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        detection=True,
        drop_path_rate=0.4,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='overlock-s_in1k')),
    neck=dict(in_channels=_base_.channels))
