# VAN-B2, ImageNet-1K, 1x on COCO.
# Source: the VAN paper, section 4.2, without a config: optimiser, rate, decay, images and epochs. Here:
# Swin's warm-up, steps and norms without decay, one scale of images, and the drop path of the pretraining.
_base_ = [
    '_base_/backbones/van-b2.py', '_base_/models/mask_rcnn.py',
    '_base_/datasets/coco_instance_800.py', '_base_/schedules/det_adamw_1x_swin.py', '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.1,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='van-b2_in1k')),
    neck=dict(in_channels=_base_.channels))
