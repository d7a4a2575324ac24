# mmdet's 3x for ResNets: 16 images per step (8 GPUs x 2). mmdet writes it as 12 epochs over the set taken
# thrice.
_base_ = './det_adamw_3x.py'
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001))
