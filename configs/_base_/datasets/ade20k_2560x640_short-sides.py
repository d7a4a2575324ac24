# Mask2Former's for larger networks: short sides of half to twice 640 pixels, 640x640 crops, and tested at
# (2560, 640).
_base_ = './ade20k_2560x640.py'
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(
        type='RandomChoiceResize', scales=[int(640 * x * 0.1) for x in range(5, 21)],
        resize_type='ResizeShortestEdge', max_size=2560),
    *_base_.train_pipeline[3:],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
