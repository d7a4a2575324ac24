# Mask2Former's: short sides of half to twice 512 pixels in steps of a tenth, 512x512 crops.
_base_ = './ade20k.py'
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(
        type='RandomChoiceResize', scales=[int(512 * x * 0.1) for x in range(5, 21)],
        resize_type='ResizeShortestEdge', max_size=2048),
    *_base_.train_pipeline[3:],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
