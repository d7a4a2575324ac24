# The ConvNeXt roadmap at a quarter of its width on the demo scenes: with a 4x4 convolution as the stem.
_base_ = './upernet_roadmap-stage-ratio_demo.py'
model = dict(backbone=dict(arch=dict(step='patchify')))
