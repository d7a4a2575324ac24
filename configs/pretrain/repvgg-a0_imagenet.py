# RepVGG-A0 on ImageNet-1K, 120 epochs.
# Source: RepVGG README.md, "Reproduce original RepVGG results reported in the paper", and the paper,
# section 4.1: the small models have no label smoothing, mixup or RandAugment.
_base_ = [
    '../_base_/backbones/repvgg-a0.py', '../_base_/models/classifier_plain.py',
    '../_base_/datasets/imagenet_plain.py', '../_base_/schedules/cls_sgd_120e.py', '../_base_/runtime_cls.py',
]
model = dict(
    backbone=dict(_base_.backbone, out_indices=(3, )),
    neck=dict(channels=_base_.channels[3]),
    head=dict(in_channels=_base_.channels[3]))
train_dataloader = dict(batch_size=32)  # on 8 GPUs
