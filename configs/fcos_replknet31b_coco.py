# RepLKNet-31B, ImageNet-1K, on COCO.
# Source: RepLKNet-pytorch detection/configs/RepLKNet-31B_1Kpretrain_fcos_2x_coco.py
_base_ = [
    '_base_/backbones/replknet31b.py', '_base_/models/fcos.py',
    '_base_/datasets/coco_detection.py', '_base_/schedules/det_adamw_2x.py', '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.5,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='replknet-31b_in1k')),
    neck=dict(in_channels=_base_.channels))
