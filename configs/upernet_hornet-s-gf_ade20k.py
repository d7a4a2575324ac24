# HorNet-S with global filters, ImageNet-1K, on ADE20K.
# Source: HorNet semantic_segmentation/configs/hornet/upernet_hornet_small_gf_512_160k_ade20k.py
_base_ = [
    '_base_/backbones/hornet-s-gf.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_adamw_160k_stage-decay.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.3,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='hornet-s-gf_in1k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 341)))
optim_wrapper = dict(clip_grad=dict(max_norm=1))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
