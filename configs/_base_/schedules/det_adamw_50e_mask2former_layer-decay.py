# For backbones that know the depth of their parameters, as seg_adamw_160k_mask2former_layer-decay.py.
_base_ = './det_adamw_50e_mask2former.py'
optim_wrapper = dict(
    constructor='mmlk.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        decay_rate=1.0,
        bias_decay_mult=1.0,
        custom_keys=dict(
            query_embed=dict(decay_mult=0.0),
            query_feat=dict(decay_mult=0.0),
            level_embed=dict(decay_mult=0.0))))
