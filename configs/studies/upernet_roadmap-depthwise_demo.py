# The ConvNeXt roadmap at a quarter of its width on the demo scenes: with depthwise 3x3 convolutions.
_base_ = './upernet_roadmap-patchify_demo.py'
model = dict(backbone=dict(arch=dict(step='depthwise')))
