# OverLoCK-B, ImageNet-1K, on ADE20K.
# Source: OverLoCK segmentation/configs/overlock/upernet_overlock_base_ade20k_8xb2.py
_base_ = [
    '_base_/backbones/overlock-b.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k_multiple32_bicubic.py',
    '_base_/schedules/seg_adamw_160k_swin.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.5,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='overlock-b_in1k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
