# 1024x1024 crops at full resolution: SegNeXt's.
_base_ = './cityscapes.py'
crop_size = (1024, 1024)
train_pipeline = [
    dict(step, crop_size=crop_size) if step.type == 'RandomCrop' else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
