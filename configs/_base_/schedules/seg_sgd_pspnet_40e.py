# RepVGG's for PSPNet on Cityscapes: 40 epochs of 2975 images, 16 per step (8 GPUs x 2), to a rate of 0. The
# heads learn ten times as fast as the backbone, as in the official PSPNet.
_base_ = './seg_sgd_160k.py'
train_cfg = dict(max_iters=7440, val_interval=744)
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.0001),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0), auxiliary_head=dict(lr_mult=10.0))))
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=False, begin=0, end=7440)]
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(checkpoint=dict(interval=744))
