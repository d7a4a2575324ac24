# The small ConvNeXt with ParC in the last third of its last two stages, for maps of 100x80 pixels and less.
_base_ = './upernet_convnext-micro_demo.py'
model = dict(backbone=dict(type='mmlk.ParCConvNeXt', arch=dict(stages_rs=(25, 13, 7, 4))))
