# SegNeXt's: ten times the rate in the head, little weight decay, none on what has `norm` in its name (the
# head's GN has not), 16 images per step on ADE20K (2 GPUs x 8, or 4 x 4) and 8 on Cityscapes.
_base_ = './seg_adamw_160k.py'
optim_wrapper = dict(
    optimizer=dict(lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(_delete_=True, custom_keys=dict(norm=dict(decay_mult=0.0), head=dict(lr_mult=10.0))))
auto_scale_lr = dict(base_batch_size=16)
