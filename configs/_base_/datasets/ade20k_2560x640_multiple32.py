# UniRepLKNet's with 22K weights: trained on 512x512 crops as ade20k.py, tested on images of (2560, 640)
# stretched to sides that 32 divides, at three ratios in the multi-scale test.
_base_ = './ade20k.py'
__stretch = dict(type='ResizeToMultiple', size_divisor=32)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2560, 640), keep_ratio=True),
    __stretch,
    *_base_.test_pipeline[2:],
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(int(2560 * ratio), int(640 * ratio)), keep_ratio=True)
             for ratio in (0.75, 1.0, 1.25)],
            [__stretch],
            *_base_.tta_pipeline[1].transforms[1:],
        ]),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
