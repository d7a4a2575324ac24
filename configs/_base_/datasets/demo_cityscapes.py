# The demo scenes in Cityscapes' layout:
# tools/make_demo_data.py --layout cityscapes --out data/demo/cityscapes
_base_ = './cityscapes_769.py'
data_root = 'data/demo/cityscapes'
crop_size = (80, 100)  # smaller than on disk, for speed; predictions are resized back
__scenes = dict(
    type='BaseSegDataset',  # CityscapesDataset accepts no class names but its own
    data_root=data_root,
    img_suffix='_leftImg8bit.png',
    seg_map_suffix='_gtFine_labelTrainIds.png',
    metainfo=dict(
        classes=('ground', 'disc', 'ring', 'square', 'bar', 'cross'),
        palette=[[96, 96, 96], [230, 75, 60], [245, 190, 40], [70, 130, 230], [60, 175, 90], [165, 85, 200]]))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(100, 80), keep_ratio=True),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(100, 80), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(size, size * 4 // 5), keep_ratio=True) for size in (80, 100, 120)],
            [dict(type='RandomFlip', prob=0.0, direction='horizontal'),
             dict(type='RandomFlip', prob=1.0, direction='horizontal')],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ]),
]
train_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False,
    dataset=dict(__scenes, pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(__scenes, pipeline=test_pipeline))
test_dataloader = val_dataloader
