# The ConvNeXt roadmap at a quarter of its width on the demo scenes: with inverted bottlenecks.
_base_ = './upernet_roadmap-width-96_demo.py'
channels = [24, 48, 96, 192]
model = dict(
    backbone=dict(arch=dict(step='inverted')),
    decode_head=dict(in_channels=[24, 48, 96, 192]),
    auxiliary_head=dict(in_channels=96))
