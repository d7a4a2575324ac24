# For 8 GPUs: the images of the published run (64 images x 80k steps) in 160k steps of 32, a split that the
# authors name in their config's comments, at the same rate and with a warm-up as long for its share. The
# published figure is of the other.
_base_ = 'upernet_replknet31l-22k_ade20k.py'
train_cfg = dict(max_iters=160000, val_interval=8000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1600),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1600, end=160000),
]
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(checkpoint=dict(interval=8000))
train_dataloader = dict(batch_size=4)  # on 8 GPUs
