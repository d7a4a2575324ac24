# For studies of kernel sizes on ADE20K, by SLaK's config of such a run: warm-up of 800, 16 images per step
# (4 GPUs x 4).
_base_ = './seg_adamw_80k.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=800),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=800, end=80000),
]
