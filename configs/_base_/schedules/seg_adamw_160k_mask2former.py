# Mask2Former's: poly of power 0.9 without a warm-up, gradients of norm 0.01, a tenth of the rate on the
# backbone, no decay on norms and embeddings, 16 images per step (8 GPUs x 2). What decays in the backbone
# goes by names, so the leaf adds those of its norms.
_base_ = './seg_adamw_160k.py'
__embedding = dict(lr_mult=1.0, decay_mult=0.0)
train_cfg = dict(val_interval=5000)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.1, decay_mult=1.0), query_embed=__embedding, query_feat=__embedding,
            level_embed=__embedding)))
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=False, begin=0, end=160000)]
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(checkpoint=dict(interval=5000))
