# MobileNetV2 with kernels of 13x13 in the last stage, ImageNet-1K for 100 epochs, on Cityscapes.
# Source: section 3 of the RepLKNet paper, on mmseg's default settings: mmsegmentation
# configs/mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb2-80k_cityscapes-512x1024.py. No weights were
# published: pretrain, and set model.backbone.init_cfg.
_base_ = [
    '_base_/backbones/mobilenetv2-d8.py', '_base_/models/deeplabv3plus.py',
    '_base_/datasets/cityscapes.py', '_base_/schedules/seg_sgd_80k.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(_base_.backbone, arch='last13'),
    decode_head=dict(in_channels=_base_.channels[3], c1_in_channels=_base_.channels[0], num_classes=19),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=19))
