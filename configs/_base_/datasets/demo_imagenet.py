# The shapes of the demo scenes one by one, in ImageNet's layout:
# tools/make_demo_data.py --layout imagenet --out data/demo/imagenet \
#    --train 2000 --val 400 --size 96 96
_base_ = './imagenet.py'
data_root = 'data/demo/imagenet'
__shapes = dict(
    data_root=data_root,
    # mmpretrain numbers the folders in alphabetical order
    metainfo=dict(classes=('bar', 'cross', 'disc', 'ring', 'square')))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=80, crop_ratio_range=(0.7, 1.0), backend='pillow'),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=80, edge='short', backend='pillow'),
    dict(type='PackInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='ResizeEdge', scale=80, edge='short', backend='pillow')],
            [dict(type='RandomFlip', prob=0.0, direction='horizontal'),
             dict(type='RandomFlip', prob=1.0, direction='horizontal')],
            [dict(type='PackInputs')],
        ]),
]
train_dataloader = dict(
    batch_size=32, num_workers=0, persistent_workers=False,
    dataset=dict(__shapes, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=50, num_workers=0, persistent_workers=False,
    dataset=dict(__shapes, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, ))
test_evaluator = val_evaluator
