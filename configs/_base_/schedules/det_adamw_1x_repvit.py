# RepViT's 1x: 12 epochs with steps at 8 and 11, and weight decay on norms too.
_base_ = './det_adamw_3x.py'
train_cfg = dict(max_epochs=12)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(norm_decay_mult=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
