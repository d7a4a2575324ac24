# A UperNet with 31x31 kernels that trains on a CPU in minutes, on scenes drawn in the layout of its dataset.
_base_ = [
    '../_base_/backbones/replknet-tiny.py', '../_base_/models/upernet_small.py',
    '../_base_/datasets/demo_ade20k.py', '../_base_/schedules/demo_seg.py', '../_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=_base_.backbone,
    decode_head=dict(in_channels=_base_.channels, num_classes=6),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=6))
