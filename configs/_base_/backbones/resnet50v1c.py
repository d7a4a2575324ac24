# ResNet with a deep stem, as mmseg trains it under UperNet.
backbone = dict(
    type='ResNetV1c', depth=50, out_indices=(0, 1, 2, 3), style='pytorch', norm_cfg=dict(type='SyncBN'),
    init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet50_v1c'))
channels = [256, 512, 1024, 2048]
