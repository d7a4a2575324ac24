# own_segmentation.py for images of four channels, for example red, green, blue and near infrared in a TIFF.
_base_ = './own_segmentation.py'
img_suffix = '.tif'
load = dict(type='LoadImageFromFile', color_type='unchanged', imdecode_backend='tifffile')
train_pipeline = [
    load,
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=_base_.scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=_base_.crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),  # no PhotoMetricDistortion, which is for three channels
    dict(type='PackSegInputs'),
]
test_pipeline = [
    load,
    dict(type='Resize', scale=_base_.scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(img_suffix=img_suffix, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(img_suffix=img_suffix, pipeline=test_pipeline))
test_dataloader = val_dataloader
model = dict(
    data_preprocessor=dict(
        type='mmlk.SegDataPreProcessor',  # as mmseg's, for any number of channels
        mean=[123.675, 116.28, 103.53, 110.0],  # of each channel of your training images
        std=[58.395, 57.12, 57.375, 55.0],
        bgr_to_rgb=False),
    backbone=dict(in_channels=4, init_cfg=dict(adapt_stem=True)))  # makes stem kernels of 4 channels from those for RGB
