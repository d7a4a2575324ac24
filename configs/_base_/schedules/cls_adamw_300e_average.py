# With averaged weights, which are tested and saved: timm's ModelEma of decay 0.9999, statistics of norms
# included.
_base_ = './cls_adamw_300e.py'
custom_hooks = [dict(type='EMAHook', momentum=1e-4, update_buffers=True, priority='ABOVE_NORMAL')]
