# mmseg's for ResNets: 16 images per step (4 GPUs x 4).
_base_ = './seg_adamw_160k.py'
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005))
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, by_epoch=False, begin=0, end=160000)]
auto_scale_lr = dict(base_batch_size=16)
