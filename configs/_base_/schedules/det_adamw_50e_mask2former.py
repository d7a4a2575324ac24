# Mask2Former's 50 epochs: 368750 iterations of 16 images (8 GPUs x 2), steps at 327778 and 355092, without a
# warm-up; optimizer as in seg_adamw_160k_mask2former.py.
_base_ = './det_adamw_3x.py'
__embedding = dict(lr_mult=1.0, decay_mult=0.0)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=368750, val_interval=7375)
optim_wrapper = dict(
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.1, decay_mult=1.0), query_embed=__embedding, query_feat=__embedding,
            level_embed=__embedding)))
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=368750, milestones=[327778, 355092], gamma=0.1)]
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=7375))
