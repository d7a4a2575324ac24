# UniRepLKNet-T on ImageNet-1K. Without averaged weights, and with BN on each device, as officially.
# Source: UniRepLKNet Image/README.md, "ImageNet-1K Training", and main.py
_base_ = [
    '../_base_/backbones/unireplknet-t.py', '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/cls_adamw_300e.py', '../_base_/runtime_cls.py',
]
model = dict(
    backbone=dict(
        _base_.backbone, out_indices=(3, ), drop_path_rate=0.2, with_cp=False, norm_cfg=dict(type='BN')),
    neck=dict(channels=_base_.channels[3], norm_cfg=dict(type='LN', eps=1e-6)),
    head=dict(in_channels=_base_.channels[3]))
train_dataloader = dict(batch_size=128)  # on 32 GPUs
