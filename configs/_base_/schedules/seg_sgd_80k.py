# mmseg's for ResNets on Cityscapes: 8 images per step (4 GPUs x 2).
_base_ = './seg_sgd_160k.py'
train_cfg = dict(max_iters=80000)
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, by_epoch=False, begin=0, end=80000)]
auto_scale_lr = dict(base_batch_size=8)
