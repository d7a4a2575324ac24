# A linear head on the frozen pyramid, as DINOv3 probes: dropout, BN and a 1x1 convolution over all maps of
# the backbone, tested in windows. The leaf adds backbone, in_channels and num_classes.
# Source: github.com/facebookresearch/dinov3 dinov3/eval/segmentation/
# configs/config-ade20k-linear-training.yaml and models/heads/linear_head.py. There the last layer alone is
# taken (LAST); here all maps are.
model = dict(
    type='mmlk.FrozenEncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255),
    decode_head=dict(
        type='mmlk.LinearHead',
        in_index=[0, 1, 2, 3],
        dropout_ratio=0.1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
custom_hooks = [dict(type='mmlk.ProbeReportHook')]
