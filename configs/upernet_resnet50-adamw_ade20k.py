# ResNet-50, ImageNet-1K, on ADE20K as the baseline of ParC-ResNet-50.
# Source: the README of ParC-Net; the recipe is edgeformer_v2_semantic_segmentation configs/
# resnet50/upernet_rs50_512_160k_ade20k.py by the author of Fast-ParC.
# torchvision's second weights stand for its own, which were not published.
_base_ = [
    '_base_/backbones/resnet50.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_adamw_160k_parc.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        init_cfg=dict(
            type='Pretrained', checkpoint='https://download.pytorch.org/models/resnet50-11ad3fa6.pth')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 341)))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
