# RepVGG's on ImageNet-1K (README.md, "Train from scratch"; section 4.1 of the paper): SGD, a cosine from
# 0.1 to 0, no decay on biases and on the norms of the 3x3 and 1x1 branches. 256 images per step (8 GPUs x
# 32).
_base_ = './cls_adamw_300e.py'
train_cfg = dict(max_epochs=120)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(
        bias_decay_mult=0.0,
        custom_keys={
            'rbr_dense.bn': dict(decay_mult=0.0),
            'rbr_1x1.bn': dict(decay_mult=0.0),
            'rbr_identity.bias': dict(decay_mult=0.0)}))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=0, end=120, T_max=120,
         convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=256)
