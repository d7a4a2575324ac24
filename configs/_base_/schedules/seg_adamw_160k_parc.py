# Fast-ParC's for ResNet and MobileNetV2: no decay on norms and biases; the official rate falls from stage to
# stage in ConvNeXts alone. 16 images per step (8 GPUs x 2).
_base_ = './seg_adamw_160k.py'
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(bias_decay_mult=0.0))
auto_scale_lr = dict(base_batch_size=16)
