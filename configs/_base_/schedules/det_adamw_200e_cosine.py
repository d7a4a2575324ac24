# ParC-Net's for SSD, after MobileViT: 200 epochs of 128 images per step (4 GPUs x 32), a cosine from 9e-4
# to 1e-6 after a warm-up from a tenth, decay on norms too, and weights averaged over the run.
_base_ = './det_adamw_3x.py'
train_cfg = dict(max_epochs=200, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=9e-4, weight_decay=0.02), paramwise_cfg=dict(norm_decay_mult=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=200, T_max=200, eta_min=1e-6),
]
auto_scale_lr = dict(base_batch_size=128)
custom_hooks = [dict(type='EMAHook', momentum=0.0005, update_buffers=True)]
