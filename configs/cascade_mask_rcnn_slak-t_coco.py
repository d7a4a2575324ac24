# SLaK-T, ImageNet-1K for 300 epochs, 3x on COCO.
# Source: SLaK detection/configs/
# cascade_mask_rcnn_slak_tiny_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco_in1k.py
_base_ = [
    '_base_/backbones/slak-t.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_layer-decay.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.4,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='slak-t_in1k')),
    neck=dict(in_channels=_base_.channels))
custom_hooks = [dict(type='mmlk.DynamicSparsityHook', frozen=True)]  # what pretraining cut stays zero
