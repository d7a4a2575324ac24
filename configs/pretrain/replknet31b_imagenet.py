# RepLKNet-31B on ImageNet-1K.
# Source: RepLKNet-pytorch README.md, "Pretrain RepLKNet-31B on ImageNet-1K", and main.py. The official run
# does not checkpoint activations unless it is asked to; set backbone.with_cp=True where memory is short.
_base_ = [
    '../_base_/backbones/replknet31b.py', '../_base_/models/classifier.py', '../_base_/datasets/imagenet.py',
    '../_base_/schedules/cls_adamw_300e_average.py', '../_base_/runtime_cls.py',
]
model = dict(
    backbone=dict(_base_.backbone, out_indices=(3, ), drop_path_rate=0.5, with_cp=False),
    neck=dict(channels=_base_.channels[3], norm_cfg=dict(type='SyncBN')),
    head=dict(in_channels=_base_.channels[3], init_cfg=None))
train_dataloader = dict(batch_size=64)  # on 32 GPUs
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=10, end=300, T_max=290,
         convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=2048)
