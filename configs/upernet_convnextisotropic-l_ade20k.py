# Isotropic ConvNeXt-L, ImageNet-1K, on ADE20K.
# Source: none. The recipe is that of upernet_vit-b16_ade20k, with mmsegmentation's Feature2Pyramid as the
# neck, to stand beside upernet_vit-b16-pyramid_ade20k.
_base_ = [
    '_base_/backbones/convnextisotropic-l.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_adamw_160k_swin.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.1,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='convnextisotropic-l_in1k')),
    neck=_base_.neck,
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(
        _delete_=True, pos_embed=dict(decay_mult=0.0), cls_token=dict(decay_mult=0.0),
        norm=dict(decay_mult=0.0))))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
