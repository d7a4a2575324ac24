# A classifier with 31x31 kernels, pretrained on a CPU in minutes, on one shape an image. The segmentor that
# starts from it: upernet_replknet-tiny-pretrained_ade20k.py.
_base_ = [
    '../_base_/backbones/replknet-tiny.py', '../_base_/models/classifier_plain.py',
    '../_base_/datasets/demo_imagenet.py', '../_base_/schedules/demo_cls.py', '../_base_/runtime_cls.py',
]
model = dict(
    data_preprocessor=dict(num_classes=5),
    backbone=dict(_base_.backbone, out_indices=(3, )),
    neck=dict(channels=_base_.channels[3], norm_cfg=dict(type='BN')),
    head=dict(in_channels=_base_.channels[3], num_classes=5))
