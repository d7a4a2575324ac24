# Swin-L, ImageNet-22K, on ADE20K.
# Source: the Swin paper, without a config: here the recipe of the 1K models on crops of 640x640.
_base_ = [
    '_base_/backbones/swin-l.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k_2560x640.py', '_base_/schedules/seg_adamw_160k_swin.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/'
            'swin_large_patch4_window7_224_22k_20220412-aeecf2aa.pth')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
