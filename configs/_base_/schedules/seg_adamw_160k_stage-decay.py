# ConvNeXt's, which SLaK and HorNet took over: a rate that falls from stage to stage towards the image, lowest
# on all downsampling layers; 16 images per step. `num_layers` says how far the heads are ahead, not how deep
# the backbone is: 12, and 6 for the T models.
_base_ = './seg_adamw_160k.py'
optim_wrapper = dict(
    constructor='mmlk.LayerDecayOptimWrapperConstructor',
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(
        decay_rate=0.9,
        decay_type='stage_wise',
        num_layers=12,
        custom_keys={'backbone.downsample_layers': dict(depth=0), 'backbone.norm': dict(depth='head')}))
auto_scale_lr = dict(base_batch_size=16)
