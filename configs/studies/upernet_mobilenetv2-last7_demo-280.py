# MobileNetV2 with kernels of 7x7 in the last stage, on the demo scenes enlarged to 280x224.
_base_ = './upernet_mobilenetv2-3_demo-280.py'
model = dict(backbone=dict(arch='last7'))
