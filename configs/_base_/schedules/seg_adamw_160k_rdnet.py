# RDNet's: a rate that falls from dense stage to dense stage towards the image. The official rule is
# lr * rate**(8 - depth) whatever the number of dense stages, and lr / rate**2 for all heads: a leaf of a
# network with D dense stages has the rate lr * rate**(7 - D), and its heads the factor rate**(D - 9).
_base_ = './seg_adamw_160k.py'
optim_wrapper = dict(
    constructor='mmlk.LayerDecayOptimWrapperConstructor',
    optimizer=dict(lr=8e-5, weight_decay=0.03),
    paramwise_cfg=dict(decay_rate=0.9))
param_scheduler = [
    dict(type='LinearLR', start_factor=6e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]
auto_scale_lr = dict(base_batch_size=16)
