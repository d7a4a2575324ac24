# EfficientNet-Lite0 with ImageNet weights, whose learning rate falls towards the image by layers.
_base_ = './upernet_efficientnet-lite0_camvid.py'
optim_wrapper = dict(
    constructor='mmlk.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, decay_rate=0.9))
