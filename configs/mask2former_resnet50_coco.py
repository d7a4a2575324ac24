# ResNet-50 on COCO.
# Source: mmdetection configs/mask2former/mask2former_r50_8xb2-lsj-50e_coco.py
_base_ = [
    '_base_/backbones/resnet50.py', '_base_/models/mask2former_instance.py',
    '_base_/datasets/coco_instance_lsj.py', '_base_/schedules/det_adamw_50e_mask2former.py',
    '_base_/runtime_det_iterations.py',
]
model = dict(
    backbone=dict(_base_.backbone, frozen_stages=-1, norm_cfg=dict(type='BN', requires_grad=False)),
    panoptic_head=dict(in_channels=_base_.channels))
