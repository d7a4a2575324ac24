# UniRepLKNet's: a rate that falls from layer to layer towards the image, 16 images per step (8 GPUs x 2).
_base_ = './seg_adamw_160k.py'
optim_wrapper = dict(
    constructor='mmlk.LayerDecayOptimWrapperConstructor',
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(decay_rate=0.9))
auto_scale_lr = dict(base_batch_size=16)
