# MobileNetV2 with kernels of 3x3 and no shortcuts, on the demo scenes.
_base_ = './upernet_mobilenetv2-3_demo.py'
model = dict(backbone=dict(arch='3-noshortcut'))
