# Stride 8, as mmseg's: the last two stages keep the resolution and are dilated.
_base_ = './resnet101v1c.py'
backbone = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True)
