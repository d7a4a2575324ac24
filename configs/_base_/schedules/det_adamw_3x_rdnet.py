# RDNet's: ConvNeXt's 3x with the rate of seg_adamw_160k_rdnet.py, and a longer warm-up.
_base_ = './det_adamw_3x.py'
optim_wrapper = dict(
    constructor='mmlk.LayerDecayOptimWrapperConstructor',
    optimizer=dict(lr=8e-5),
    paramwise_cfg=dict(decay_rate=0.7))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
