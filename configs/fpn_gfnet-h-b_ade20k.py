# GFNet-H-B, ImageNet-1K, under Semantic FPN on ADE20K.
# Source: the GFNet paper, without a config: here PVT's recipe, the usual one of Semantic FPN with such
# networks, and the drop path of PVT's run.
_base_ = [
    '_base_/backbones/gfnet-h-b.py', '_base_/models/semantic_fpn.py',
    '_base_/datasets/ade20k_multiple32.py', '_base_/schedules/seg_adamw_80k_fpn.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.1,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='gfnet-h-b_in1k')),
    neck=dict(in_channels=_base_.channels),
    decode_head=dict(num_classes=150))
