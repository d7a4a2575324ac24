# MobileNetV2 with 3x3 kernels dilated to the reach of 13x13, on the demo scenes.
_base_ = './upernet_mobilenetv2-3_demo.py'
model = dict(backbone=dict(arch='13-dilated'))
