# EfficientNet-Lite0 with ImageNet weights that are not trained further, nor are the statistics of its norms.
_base_ = './upernet_efficientnet-lite0_camvid.py'
model = dict(backbone=dict(frozen_stages=4))
