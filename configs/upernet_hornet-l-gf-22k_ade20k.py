# HorNet-L with global filters, ImageNet-22K, on ADE20K.
# Source: HorNet semantic_segmentation/configs/hornet/upernet_hornet_large_gf_640_160k_ade20k.py
_base_ = [
    '_base_/backbones/hornet-l-gf.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k_2560x640.py', '_base_/schedules/seg_adamw_160k_stage-decay.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.4,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='hornet-l-gf_in22k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(426, 426)))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8), clip_grad=dict(max_norm=0.1))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
