# ParC-Net's for DeepLabv3 on Pascal VOC, after MobileViT: 50 epochs of 10582 images, 32 per step (4 GPUs x
# 8), a cosine from 9e-4 to 1e-6 after a warm-up from a tenth, ten times that for the head, decay on norms
# too, and weights averaged over the run.
_base_ = './seg_adamw_160k.py'
train_cfg = dict(max_iters=16500, val_interval=1650)
optim_wrapper = dict(
    optimizer=dict(lr=9e-4, weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=1.0, custom_keys=dict(decode_head=dict(lr_mult=10.0))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=16500, T_max=16500, eta_min=1e-6),
]
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(checkpoint=dict(interval=1650))
custom_hooks = [dict(type='EMAHook', momentum=0.0005, update_buffers=True)]
