# A classifier as the official ones: the mean of the last map, and a linear layer. The leaf adds the
# backbone, the norm and the channels. Mixup and CutMix take turns, as in timm's Mixup(mixup_alpha=0.8,
# cutmix_alpha=1.0).
model = dict(
    type='mmlk.ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True),
    neck=dict(type='mmlk.PoolingNeck'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
