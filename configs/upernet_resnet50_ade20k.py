# ResNet-50 on ADE20K.
# Source: mmsegmentation configs/upernet/upernet_r50_4xb4-160k_ade20k-512x512.py (4 GPUs x 4 images)
_base_ = [
    '_base_/backbones/resnet50v1c.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_sgd_160k.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=_base_.backbone,
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150))
