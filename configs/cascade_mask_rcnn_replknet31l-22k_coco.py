# RepLKNet-31L, ImageNet-22K, on COCO.
# Source: RepLKNet-pytorch detection/configs/RepLKNet-31L_22Kpretrain_cascade_mask_rcnn_3x_coco.py
_base_ = [
    '_base_/backbones/replknet31l.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_replknet.py', '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.7,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='replknet-31l_in22k')),
    neck=dict(in_channels=_base_.channels))
