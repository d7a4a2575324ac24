# EfficientNet-Lite0 on small photographs, from scratch.
_base_ = [
    '../_base_/backbones/efficientnet-lite0.py', '../_base_/models/upernet_small.py',
    '../_base_/datasets/camvid.py', '../_base_/schedules/seg_adamw_small.py', '../_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size, mean=_base_.mean, std=_base_.std),
    backbone=_base_.backbone,
    decode_head=dict(in_channels=_base_.channels, num_classes=11),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=11))
