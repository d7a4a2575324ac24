# RepLKNet's FCOS run: 24 epochs with steps at 16 and 22, gradients clipped. 2 images per GPU; the number of
# GPUs was not published, mmdet's 8 are assumed.
_base_ = './det_adamw_3x.py'
train_cfg = dict(max_epochs=24)
optim_wrapper = dict(optimizer=dict(lr=2e-4), clip_grad=dict(max_norm=35, norm_type=2))
param_scheduler = [
    dict(type='ConstantLR', factor=1.0 / 3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=24, milestones=[16, 22], gamma=0.1),
]
