# RepLKNet's for 31B: 128 images per step (64 GPUs x 2), warm-up of 400. For 8 GPUs, see configs/*_8xb*.
_base_ = './seg_adamw_160k.py'
train_cfg = dict(max_iters=40000, val_interval=2000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=400),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=400, end=40000),
]
auto_scale_lr = dict(base_batch_size=128)
default_hooks = dict(checkpoint=dict(interval=2000))
