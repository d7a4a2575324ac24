# Large-scale jittering: images of 0.1 to 2 times 1024 pixels, from which 1024x1024 are cropped. Which images
# are in a batch does not matter, since all are padded to one size.
_base_ = './coco_instance.py'
crop_size = (1024, 1024)
__load = dict(type='LoadImageFromFile', to_float32=True)
train_pipeline = [
    __load,
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomResize', scale=crop_size, ratio_range=(0.1, 2.0), resize_type='Resize', keep_ratio=True),
    dict(
        type='RandomCrop', crop_size=crop_size, crop_type='absolute', recompute_bbox=True,
        allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [__load, *_base_.test_pipeline[1:]]
train_dataloader = dict(
    sampler=dict(type='InfiniteSampler'), batch_sampler=None, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
