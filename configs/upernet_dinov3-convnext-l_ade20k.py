# ConvNeXt-L, distilled from DINOv3's ViT-7B on LVD-1689M, on ADE20K.
# Source: none, nothing was published of UperNet: here ConvNeXt's values with layer-wise decay.
_base_ = [
    '_base_/backbones/dinov3-convnext-l.py', '_base_/models/upernet.py', '_base_/datasets/ade20k.py',
    '_base_/schedules/seg_adamw_160k_layer-decay.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.4,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='dinov3-convnext-l_lvd1689m')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
