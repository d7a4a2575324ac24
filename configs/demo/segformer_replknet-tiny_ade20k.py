# SegFormer's head on 31x31 kernels, which trains on a CPU in minutes, on scenes drawn in ADE20K's layout.
_base_ = [
    '../_base_/backbones/replknet-tiny.py', '../_base_/models/segformer.py',
    '../_base_/datasets/demo_ade20k.py', '../_base_/schedules/demo_seg.py', '../_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=_base_.backbone,
    decode_head=dict(
        in_channels=_base_.channels, channels=32, num_classes=6, norm_cfg=dict(type='BN'),
        # the stock head's start (0.01) holds learning up for hundreds of iterations
        init_cfg=dict(type='Normal', std=0.1, override=dict(name='conv_seg'))))
