# ResNet-50 with ParC at a quarter of its width on the demo scenes.
_base_ = [
    '../_base_/backbones/parc-resnet50-micro.py', '../_base_/models/upernet_small.py',
    '../_base_/datasets/demo_ade20k.py', '../_base_/schedules/demo_seg.py', '../_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=_base_.backbone,
    decode_head=dict(in_channels=_base_.channels, num_classes=6),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=6))
