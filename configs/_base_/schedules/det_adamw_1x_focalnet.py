# FocalNet's 1x: Swin's, with the first step an epoch later.
_base_ = './det_adamw_1x_swin.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[9, 11], gamma=0.1),
]
