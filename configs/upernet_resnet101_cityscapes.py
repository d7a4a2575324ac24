# ResNet-101 on Cityscapes.
# Source: mmsegmentation configs/upernet/upernet_r101_4xb2-80k_cityscapes-769x769.py (4 GPUs x 2 images)
_base_ = [
    '_base_/backbones/resnet101v1c.py', '_base_/models/upernet.py',
    '_base_/datasets/cityscapes_769.py', '_base_/schedules/seg_sgd_80k.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=_base_.backbone,
    decode_head=dict(in_channels=_base_.channels, num_classes=19, align_corners=True),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=19, align_corners=True),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(513, 513)))
