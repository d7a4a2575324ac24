# SLaK-S, ImageNet-1K, on ADE20K.
# Source: SLaK segmentation/configs/upernet_slak_small_512_160k_ade20k_ss.py (4 GPUs x 4 images)
_base_ = [
    '_base_/backbones/slak-s.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_adamw_160k_stage-decay.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.3,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='slak-s_in1k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 341)))
custom_hooks = [dict(type='mmlk.DynamicSparsityHook', frozen=True)]  # what pretraining cut stays zero
