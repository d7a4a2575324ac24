# RDNet-S, ImageNet-1K, on ADE20K.
# Source: rdnet segmentation/configs/rdnet/rdnet_small.py
# Trained in mixed precision (--amp).
_base_ = [
    '_base_/backbones/rdnet-s.py', '_base_/models/upernet.py', '_base_/datasets/ade20k.py',
    '_base_/schedules/seg_adamw_160k_rdnet.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.2,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='rdnet-s_in1k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 341)))
optim_wrapper = dict(
    optimizer=dict(lr=8e-5 * 0.9**-4, weight_decay=0.03),
    paramwise_cfg=dict(decay_rate=0.9, custom_keys=dict(
        decode_head=dict(lr_mult=0.9**2),
        auxiliary_head=dict(lr_mult=0.9**2))))
train_dataloader = dict(batch_size=4)  # on 4 GPUs
