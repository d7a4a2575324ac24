# Stride 8, as the official PSPNet's: the last two stages keep the resolution, and each of their blocks is
# dilated. (mmseg's halves the dilation of the first block of each.)
_base_ = './resnet50v1c.py'
backbone = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
