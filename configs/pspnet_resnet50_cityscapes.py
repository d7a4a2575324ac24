# ResNet-50, ImageNet-1K, on Cityscapes, as in the RepVGG paper.
# Source: section 4.3 of the RepVGG paper on the framework of the official PSPNet (semseg), which gives its
# pyramid a quarter of the channels at each scale where mmseg's has 512, and tests with the mirror image too
# (--tta).
# Its ResNet has a stem twice as wide and weights of its own; here mmseg's.
_base_ = [
    '_base_/backbones/resnet50v1c-d8.py', '_base_/models/pspnet.py',
    '_base_/datasets/cityscapes_713.py', '_base_/schedules/seg_sgd_pspnet_40e.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=_base_.backbone,
    decode_head=dict(in_channels=_base_.channels[3], num_classes=19, align_corners=True),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=19, align_corners=True),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(476, 476)))
