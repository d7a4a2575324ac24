# Swin's 3x: no decay on what has `norm` in its name (the box heads' BN has not).
_base_ = './det_adamw_3x.py'
optim_wrapper = dict(paramwise_cfg=dict(
    _delete_=True,
    custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0), norm=dict(decay_mult=0.0))))
