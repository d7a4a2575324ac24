# As ade20k_multiple32.py, with bicubic interpolation: OverLoCK's.
_base_ = './ade20k.py'
__stretch = dict(type='ResizeToMultiple', size_divisor=32, interpolation='bicubic')
__sizes, *__rest = _base_.tta_pipeline[1].transforms
test_pipeline = [*_base_.test_pipeline[:2], __stretch, *_base_.test_pipeline[2:]]
tta_pipeline = [
    _base_.tta_pipeline[0], dict(type='TestTimeAug', transforms=[__sizes, [__stretch], *__rest])]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
