# FocalNet-T (LRF), ImageNet-1K, on ADE20K.
# Source: FocalNet segmentation/configs/focalnet/
# upernet_focalnet_tiny_patch4_512x512_160k_ade20k_lrf.py
_base_ = [
    '_base_/backbones/focalnet-t-lrf.py', '_base_/models/upernet.py', '_base_/datasets/ade20k.py',
    '_base_/schedules/seg_adamw_160k_swin.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        dense='segmentation',
        drop_path_rate=0.3,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='focalnet-t-lrf_in1k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
