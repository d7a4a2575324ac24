# ViT-B/16, ImageNet-21K, then 1K, with Feature2Pyramid as the neck, on ADE20K.
# Source: none. It is upernet_vit-b16_ade20k with the neck of mmsegmentation's configs/mae and configs/beit,
# to stand beside upernet_convnextisotropic-b_ade20k. Set model.backbone.init_cfg as the former says.
_base_ = './upernet_vit-b16_ade20k.py'
model = dict(
    neck=dict(_delete_=True, type='Feature2Pyramid', embed_dim=768, rescales=[4, 2, 1, 0.5]),
    auxiliary_head=dict(in_index=2))
