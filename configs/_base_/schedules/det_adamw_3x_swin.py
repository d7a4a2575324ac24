# Swin's 3x.
_base_ = './det_adamw_3x.py'
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0))))
