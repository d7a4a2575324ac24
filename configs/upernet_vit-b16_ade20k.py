# ViT-B/16, ImageNet-21K, then 1K, on ADE20K.
# Source: mmsegmentation configs/vit/vit_vit-b16-ln_mln_upernet_8xb2-160k_ade20k-512x512.py. Its pretrained
# file is timm's jx_vit_base_p16_224-80ecf9dd.pth, converted by mmsegmentation's
# tools/model_converters/vit2mmseg.py: set model.backbone.init_cfg to it.
_base_ = [
    '_base_/backbones/vit-b16.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_adamw_160k_swin.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(_base_.backbone, drop_path_rate=0.1),
    neck=_base_.neck,
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[3], in_index=3, num_classes=150))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(
        _delete_=True, pos_embed=dict(decay_mult=0.0), cls_token=dict(decay_mult=0.0),
        norm=dict(decay_mult=0.0))))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
