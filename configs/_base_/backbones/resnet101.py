# As mmdet trains it: the stem and the first stage frozen, BN in eval mode.
backbone = dict(
    type='ResNet', depth=101, out_indices=(0, 1, 2, 3), style='pytorch', frozen_stages=1, norm_eval=True,
    norm_cfg=dict(type='BN', requires_grad=True),
    init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'))
channels = [256, 512, 1024, 2048]
