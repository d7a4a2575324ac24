# A Mask2Former on 31x31 kernels that trains on a CPU in minutes, on scenes drawn in ADE20K's layout.
_base_ = [
    '../_base_/backbones/replknet-tiny.py', '../_base_/models/mask2former_small.py',
    '../_base_/datasets/demo_ade20k.py', '../_base_/schedules/demo_seg.py', '../_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=_base_.backbone,
    decode_head=dict(
        in_channels=_base_.channels, num_classes=6, loss_cls=dict(class_weight=[1.0] * 6 + [0.1])))
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=1.0, norm_type=2))
