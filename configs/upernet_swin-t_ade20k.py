# Swin-T, ImageNet-1K, on ADE20K.
# Source: mmsegmentation configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py
_base_ = [
    '_base_/backbones/swin-t.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_adamw_160k_swin.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/'
            'swin_tiny_patch4_window7_224_20220317-1cdeb081.pth')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
