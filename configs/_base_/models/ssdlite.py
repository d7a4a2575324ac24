# SSD with depthwise separable layers (SSDLite), mmdet's, with the six maps and the anchors of MobileViT and
# ParC-Net at 320x320. The leaf adds backbone; it gives maps of strides 16 and 32, with 128 and 160
# channels.
model = dict(
    type='SingleStageDetector',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=False),
    neck=dict(
        type='SSDNeck',
        in_channels=(128, 160),
        out_channels=(128, 160, 256, 128, 128, 64),
        level_strides=(2, 2, 2, 2),
        level_paddings=(1, 1, 1, 1),
        l2_norm_scale=None,
        use_depthwise=True,
        norm_cfg=dict(type='SyncBN'),
        act_cfg=dict(type='ReLU')),
    bbox_head=dict(
        type='SSDHead',
        in_channels=(128, 160, 256, 128, 128, 64),
        num_classes=80,
        use_depthwise=True,
        norm_cfg=dict(type='SyncBN'),
        act_cfg=dict(type='ReLU'),
        anchor_generator=dict(
            type='SSDAnchorGenerator',
            scale_major=False,
            strides=[16, 32, 64, 107, 160, 320],
            ratios=[[2, 3], [2, 3], [2, 3], [2, 3], [2, 3], [2]],
            # 0.1 to 1.05 of the image's side, in equal steps
            min_sizes=[32, 83, 133, 184, 235, 285],
            max_sizes=[83, 133, 184, 235, 285, 336]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2])),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False),
        sampler=dict(type='PseudoSampler'),
        smoothl1_beta=1.0,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False),
    test_cfg=dict(
        nms_pre=1000,
        nms=dict(type='nms', iou_threshold=0.5),
        min_bbox_size=0,
        score_thr=0.01,
        max_per_img=200))
