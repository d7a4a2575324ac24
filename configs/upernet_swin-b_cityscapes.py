# Swin-B, ImageNet-1K, on Cityscapes.
# Source: the RepLKNet paper, which has a result without a recipe. Here: Swin's own optimiser, as in
# upernet_swin-b_ade20k.py, on RepLKNet's crops and number of images.
_base_ = [
    '_base_/backbones/swin-b.py', '_base_/models/upernet.py',
    '_base_/datasets/cityscapes_769.py', '_base_/schedules/seg_adamw_80k.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/'
            'swin_base_patch4_window7_224_20220317-e9b98025.pth')),
    decode_head=dict(in_channels=_base_.channels, num_classes=19, align_corners=True),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=19, align_corners=True))
optim_wrapper = dict(
    optimizer=dict(lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(
        _delete_=True,
        custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0), norm=dict(decay_mult=0.0))))
