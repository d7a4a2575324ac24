# MobileNetV2 with kernels of 9x9, each with a parallel 3x3, on the demo scenes.
_base_ = './upernet_mobilenetv2-3_demo.py'
model = dict(backbone=dict(arch='9-reparam'))
