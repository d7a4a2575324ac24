# ResNet-50 on ADE20K.
# Source: mmsegmentation configs/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py
_base_ = [
    '_base_/backbones/resnet50.py', '_base_/models/mask2former.py',
    '_base_/datasets/ade20k_short-sides.py', '_base_/schedules/seg_adamw_160k_mask2former.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        frozen_stages=-1,
        norm_eval=False,
        norm_cfg=dict(type='SyncBN', requires_grad=False)),
    decode_head=dict(
        in_channels=_base_.channels, num_classes=150, loss_cls=dict(class_weight=[1.0] * 150 + [0.1])))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
