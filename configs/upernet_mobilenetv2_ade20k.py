# MobileNetV2, ImageNet-1K, on ADE20K as the baseline of ParC-MobileNetV2.
# Source: the README of ParC-Net; the recipe is edgeformer_v2_semantic_segmentation configs/
# mobilenetv2/upernet_mv2_512_160k_ade20k.py by the author of Fast-ParC.
# Its last map is that of the classifier's 1280 channels there, that of 320 before them here.
# mmpretrain's weights stand for its own, which were not published.
_base_ = [
    '_base_/backbones/mobilenetv2.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_adamw_160k_parc.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='mobilenetv2_in1k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 341)))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
