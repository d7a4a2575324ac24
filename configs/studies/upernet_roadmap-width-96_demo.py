# The ConvNeXt roadmap at a quarter of its width on the demo scenes: with 1.5 times the width.
_base_ = './upernet_roadmap-depthwise_demo.py'
channels = [96, 192, 384, 768]
model = dict(
    backbone=dict(arch=dict(dims=[24, 48, 96, 192])),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
