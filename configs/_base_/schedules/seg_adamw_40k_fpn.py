# VAN's and RepViT's for Semantic FPN: PVT's at twice the images and rate, 32 images per step (8 GPUs x 4).
_base_ = './seg_adamw_80k_fpn.py'
train_cfg = dict(max_iters=40000, val_interval=4000)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=False, begin=0, end=40000)]
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(checkpoint=dict(interval=4000))
