# ConvNeXt's 3x, which SLaK and UniRepLKNet took over: Swin's with a rate that falls from layer to layer
# towards the image.
_base_ = './det_adamw_3x.py'
optim_wrapper = dict(
    constructor='mmlk.LayerDecayOptimWrapperConstructor',
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(decay_rate=0.7))
