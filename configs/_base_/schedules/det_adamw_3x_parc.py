# Fast-ParC's 3x for ResNet and MobileNetV2: no decay on norms and biases; the official rate falls from layer
# to layer in ConvNeXts alone.
_base_ = './det_adamw_3x.py'
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(bias_decay_mult=0.0))
