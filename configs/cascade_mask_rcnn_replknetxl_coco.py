# RepLKNet-XL, MegData73M, on COCO.
# Source: RepLKNet-pytorch detection/configs/RepLKNet-XL_MegData73Mpretrain_cascade_mask_rcnn_3x_coco.py
# mean = std = 127.5 as in pretraining.
_base_ = [
    '_base_/backbones/replknetxl.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_replknet.py', '_base_/runtime_det.py',
]
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.5,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='replknet-xl_meg73m')),
    neck=dict(in_channels=_base_.channels))
