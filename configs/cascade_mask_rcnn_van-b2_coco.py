# VAN-B2, ImageNet-1K, on COCO.
# Source: the VAN paper, section 4.2, without a config: its training is Swin's.
# Here: cascade_mask_rcnn_swin-t_coco.py.
_base_ = [
    '_base_/backbones/van-b2.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_swin.py', '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.2,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='van-b2_in1k')),
    neck=dict(in_channels=_base_.channels))
