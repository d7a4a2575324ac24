# PVT's for Semantic FPN: AdamW with little weight decay, no warm-up, 16 images per step (4 GPUs x 4).
_base_ = './seg_adamw_80k.py'
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4), paramwise_cfg=dict(norm_decay_mult=1.0))
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=False, begin=0, end=80000)]
