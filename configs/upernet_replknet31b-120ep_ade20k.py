# RepLKNet with kernels of 31x31 to 13x13, ImageNet-1K for 120 epochs, on ADE20K.
# Source: the study of kernel sizes in the RepLKNet paper, 80k iterations; the rest, which it does not give,
# is of the run that repeats such a study, SLaK segmentation/configs/upernet_slak_tiny_512_80k_ade20k_ss.py,
# the test RepLKNet's.
_base_ = [
    '_base_/backbones/replknet31b.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_adamw_80k_study.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.1,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='replknet-31b_in1k-120ep')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150))
