# RepViT's for Semantic FPN, whose learning rate ends at 1e-6.
_base_ = './seg_adamw_40k_fpn.py'
param_scheduler = [dict(type='PolyLR', eta_min=1e-6, power=0.9, by_epoch=False, begin=0, end=40000)]
