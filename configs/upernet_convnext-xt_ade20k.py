# ConvNeXt-XT, ImageNet-1K, on ADE20K as the baseline of ParC-ConvNeXt-XT.
# Source: the README of ParC-Net; the recipe is edgeformer_v2_semantic_segmentation configs/
# convnext_xt/upernet_convnext_xt_512_160k_ade20k.py by the author of Fast-ParC.
# No weights of this network were published: pretrain, and set model.backbone.init_cfg.
_base_ = [
    '_base_/backbones/convnext-xt.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_adamw_160k_stage-decay.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(_base_.backbone, drop_path_rate=0.4),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 341)))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=6))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
