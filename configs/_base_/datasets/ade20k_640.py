# 640x640 crops after the same resize to (2048, 512): the RepLKNet runs enlarge the crop alone, mmseg's the
# resize too.
_base_ = './ade20k.py'
crop_size = (640, 640)
train_pipeline = [
    dict(step, crop_size=crop_size) if step.type == 'RandomCrop' else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
