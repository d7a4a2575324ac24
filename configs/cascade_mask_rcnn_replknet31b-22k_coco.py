# RepLKNet-31B, ImageNet-22K, on COCO.
# Source: RepLKNet-pytorch detection/configs/RepLKNet-31B_22Kpretrain_cascade_mask_rcnn_3x_coco.py
_base_ = [
    '_base_/backbones/replknet31b.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_replknet.py', '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.4,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='replknet-31b_in22k')),
    neck=dict(in_channels=_base_.channels))
