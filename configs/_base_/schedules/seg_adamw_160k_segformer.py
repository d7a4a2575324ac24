# SegFormer's: a low rate, ten times that for the head, little weight decay, none on norms, 16 images per step
# (8 GPUs x 2).
_base_ = './seg_adamw_160k.py'
optim_wrapper = dict(
    optimizer=dict(lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))))
auto_scale_lr = dict(base_batch_size=16)
