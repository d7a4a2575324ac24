# RepLKNet-31B under Mask R-CNN on a set of your own in COCO's format, with one class.
#   python tools/check_data.py examples/own_detection.py
#   python tools/train.py examples/own_detection.py
_base_ = ['../configs/_base_/backbones/replknet31b.py', '../configs/_base_/models/mask_rcnn.py',
          '../configs/_base_/runtime_det.py']

# 1. The data. The names of `classes` are those under "categories" of the annotation files. For one class the comma
#    is needed: ('cell', ) is a tuple, ('cell') is a string.
data_root = 'data/own_coco/'
ann_files = dict(train='annotations/train.json', val='annotations/val.json')
image_folders = dict(train='train/', val='val/')
classes = ('cell', )
palette = [(220, 20, 60)]

# 2. The size (width, height) that images are scaled to fit into, and the schedule.
scale = (1333, 800)
epochs, images_per_gpu, learning_rate = 36, 2, 1e-4

# 3. The rest seldom changes.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
__dataset = dict(type='CocoDataset', data_root=data_root, metainfo=dict(classes=classes, palette=palette))
train_dataloader = dict(
    batch_size=images_per_gpu,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        __dataset, ann_file=ann_files['train'], data_prefix=dict(img=image_folders['train']),
        filter_cfg=dict(filter_empty_gt=True, min_size=32), pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        __dataset, ann_file=ann_files['val'], data_prefix=dict(img=image_folders['val']), test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=data_root + ann_files['val'], metric=['bbox', 'segm'])
test_evaluator = val_evaluator

model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.3,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='replknet-31b_in1k')),
    neck=dict(in_channels=_base_.channels),
    roi_head=dict(bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))))

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=learning_rate, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=epochs, milestones=[epochs * 3 // 4, epochs * 11 // 12]),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3, save_best='coco/bbox_mAP'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'))
