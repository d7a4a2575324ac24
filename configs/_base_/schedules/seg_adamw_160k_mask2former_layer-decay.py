# Mask2Former's for backbones that know the depth of their parameters: no decay on norms, embeddings and
# scales, wherever they are. The leaf says what learns slower: the whole backbone, as in the official recipe,
# or its layers or stages, as in the backbone's own recipe.
_base_ = './seg_adamw_160k_mask2former.py'
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
