# 80k iterations of 16 images (8 GPUs x 2).
_base_ = './seg_adamw_160k.py'
train_cfg = dict(max_iters=80000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=80000),
]
auto_scale_lr = dict(base_batch_size=16)
