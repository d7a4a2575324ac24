# VAN-B2, ImageNet-1K, under Semantic FPN on ADE20K.
# Source: VAN-Segmentation configs/sem_fpn/fpn_van_b2_ade20k_40k.py
_base_ = [
    '_base_/backbones/van-b2.py', '_base_/models/semantic_fpn.py',
    '_base_/datasets/ade20k_multiple32.py', '_base_/schedules/seg_adamw_40k_fpn.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.2,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='van-b2_in1k')),
    neck=dict(in_channels=_base_.channels),
    decode_head=dict(num_classes=150))
