# PeLK-B, ImageNet-1K, on ADE20K.
# Source: the PeLK paper, table 2; it names UperNet and 160k iterations, all else is inferred: ConvNeXt's of
# the same size. No code and no weights were published: pretrain, sparsely as SLaK, and set
# model.backbone.init_cfg.
_base_ = [
    '_base_/backbones/pelk-b.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_adamw_160k_stage-decay.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(_base_.backbone, drop_path_rate=0.4),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 341)))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
