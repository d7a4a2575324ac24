# ResNeSt-101 on ADE20K.
# Source: mmsegmentation configs/resnest/resnest_s101-d8_deeplabv3plus_4xb4-160k_ade20k-512x512.py (4 GPUs x
# 4 images)
_base_ = [
    '_base_/backbones/resnest101.py', '_base_/models/deeplabv3plus.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_sgd_160k.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        contract_dilation=True),
    decode_head=dict(in_channels=_base_.channels[3], c1_in_channels=_base_.channels[0], num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150))
