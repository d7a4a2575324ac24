# RepLKNet-31B under UperNet on a segmentation set of your own.
#   python tools/check_data.py examples/own_segmentation.py
#   python tools/train.py examples/own_segmentation.py
_base_ = ['../configs/_base_/backbones/replknet31b.py', '../configs/_base_/models/upernet.py',
          '../configs/_base_/runtime_seg.py']

# 1. The data. Each label map has the name of its image, another ending, one channel of 8 bits, and the number of a
#    class in each pixel. 255 is ignored.
data_root = 'data/own'
image_folders = dict(train='images/train', val='images/val')
label_folders = dict(train='labels/train', val='labels/val')
img_suffix, seg_map_suffix = '.jpg', '.png'
classes = ('road', 'building', 'tree')  # in the order of their numbers
palette = [[128, 64, 128], [70, 70, 70], [107, 142, 35]]  # a colour for each class, for pictures
reduce_zero_label = False  # False: label 0 is classes[0]. True: label 0 means "no class", and label 1 is classes[0]

# 2. The size. Images are scaled to fit into `scale` (width, height); training crops `crop_size` (height, width).
scale, crop_size = (1024, 512), (512, 512)
iterations, images_per_gpu, learning_rate = 20000, 4, 1e-4

# 3. The rest seldom changes.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations'),  # after Resize, so that predictions are compared at the size of the label maps
    dict(type='PackSegInputs'),
]
__dataset = dict(
    type='BaseSegDataset', data_root=data_root, img_suffix=img_suffix, seg_map_suffix=seg_map_suffix,
    metainfo=dict(classes=classes, palette=palette), reduce_zero_label=reduce_zero_label)
train_dataloader = dict(
    batch_size=images_per_gpu,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        __dataset, data_prefix=dict(img_path=image_folders['train'], seg_map_path=label_folders['train']),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        __dataset, data_prefix=dict(img_path=image_folders['val'], seg_map_path=label_folders['val']),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.3,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='replknet-31b_in1k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=len(classes)),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=len(classes)))

train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations // 10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=learning_rate, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=iterations // 20),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=iterations // 20, end=iterations),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=iterations // 10, save_best='mIoU'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))
