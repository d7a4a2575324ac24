# MogaNet's: little weight decay, none on layer scale and on what has `norm` in its name (the stem's and the
# heads' BN have not), 16 images per step (8 GPUs x 2).
_base_ = './seg_adamw_160k.py'
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.01),
    paramwise_cfg=dict(
        _delete_=True, custom_keys=dict(scale=dict(decay_mult=0.0), norm=dict(decay_mult=0.0))))
auto_scale_lr = dict(base_batch_size=16)
