# DINOv3's for linear heads on ADE20K: AdamW, weight decay on everything that is trained, linear warm-up of
# 1500 iterations times a cosine over all 40000, 16 images per step (8 GPUs x 2).
# Source: github.com/facebookresearch/dinov3 dinov3/eval/segmentation/
# configs/config-ade20k-linear-training.yaml and schedulers.py
_base_ = './seg_adamw_160k.py'
train_cfg = dict(max_iters=40000, val_interval=5000)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=1e-3),
    paramwise_cfg=dict(norm_decay_mult=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='CosineAnnealingLR', eta_min=0.0, T_max=40000, by_epoch=False, begin=0, end=40000),
]
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(checkpoint=dict(interval=5000))
