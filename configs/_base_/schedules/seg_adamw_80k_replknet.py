# RepLKNet's for 31L: 64 images per step (64 GPUs x 1), warm-up of 800. For 8 GPUs, see configs/*_8xb*.
_base_ = './seg_adamw_160k.py'
train_cfg = dict(max_iters=80000, val_interval=2000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=800),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=800, end=80000),
]
auto_scale_lr = dict(base_batch_size=64)
default_hooks = dict(checkpoint=dict(interval=2000))
