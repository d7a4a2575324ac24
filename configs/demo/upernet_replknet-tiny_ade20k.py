# A UperNet with 31x31 kernels that trains on a CPU in minutes, on scenes drawn in the layout of its dataset.
_base_ = [
    '../_base_/backbones/replknet-tiny.py', '../_base_/models/upernet.py',
    '../_base_/datasets/demo_ade20k.py', '../_base_/schedules/demo_seg.py', '../_base_/runtime_seg.py',
]
# From scratch, the stock heads' start (0.01) holds learning up for hundreds of iterations.
__init_cfg = dict(type='Normal', std=0.1, override=dict(name='conv_seg'))
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=_base_.backbone,
    decode_head=dict(
        in_channels=_base_.channels, channels=32, num_classes=6, norm_cfg=dict(type='BN'),
        init_cfg=__init_cfg),
    auxiliary_head=dict(
        in_channels=_base_.channels[2], channels=32, num_classes=6, norm_cfg=dict(type='BN'),
        init_cfg=__init_cfg))
