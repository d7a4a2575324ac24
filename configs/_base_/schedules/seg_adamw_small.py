# Minutes on two CPU cores, one recipe for every kind of backbone: AdamW from scratch, 4 images per step.
_base_ = './demo_seg.py'
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=4)
