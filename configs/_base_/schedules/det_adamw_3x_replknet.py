# RepLKNet's 3x, 4e-4. 64 images per step (32 GPUs x 2) is our reading: the authors give 1 image per GPU
# (XL: 4), not the number of GPUs, and at 64 images 4e-4 is Swin's 1e-4 at 16. On fewer GPUs pass
# --auto-scale-lr.
_base_ = './det_adamw_3x.py'
optim_wrapper = dict(optimizer=dict(lr=4e-4))
auto_scale_lr = dict(base_batch_size=64)
