# RepViT-M1.5, ImageNet-1K, under Semantic FPN on ADE20K.
# Source: RepViT segmentation/configs/sem_fpn/fpn_repvit_m1_5_ade20k_40k.py
_base_ = [
    '_base_/backbones/repvit-m1-5.py', '_base_/models/semantic_fpn.py',
    '_base_/datasets/ade20k_multiple32.py', '_base_/schedules/seg_adamw_40k_fpn_repvit.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        dense='segmentation',
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='repvit-m1-5_in1k')),
    neck=dict(in_channels=_base_.channels),
    decode_head=dict(num_classes=150))
train_dataloader = dict(batch_size=4)  # on 8 GPUs
