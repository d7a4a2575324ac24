# The ConvNeXt roadmap at a quarter of its width on the demo scenes: with GELU in place of ReLU.
_base_ = './upernet_roadmap-kernel-7_demo.py'
model = dict(backbone=dict(arch=dict(step='gelu')))
