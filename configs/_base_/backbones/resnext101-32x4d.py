# As mmdet trains it: the stem and the first stage frozen, BN in eval mode.
backbone = dict(
    type='ResNeXt', depth=101, groups=32, base_width=4, out_indices=(0, 1, 2, 3), style='pytorch',
    frozen_stages=1, norm_eval=True, norm_cfg=dict(type='BN', requires_grad=True),
    init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnext101_32x4d'))
channels = [256, 512, 1024, 2048]
