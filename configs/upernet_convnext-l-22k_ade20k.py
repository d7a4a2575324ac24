# ConvNeXt-L, ImageNet-22K, on ADE20K.
# Source: ConvNeXt semantic_segmentation/configs/convnext/upernet_convnext_large_640_160k_ade20k_ss.py
# The multi-scale test (_ms.py) takes whole images: --tta --cfg-options model.test_cfg.mode=whole.
_base_ = [
    '_base_/backbones/convnext-l.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k_2560x640.py', '_base_/schedules/seg_adamw_160k_stage-decay.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.4,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='convnext-l_in22k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(426, 426)))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
