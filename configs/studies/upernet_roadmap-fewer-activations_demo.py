# The ConvNeXt roadmap at a quarter of its width on the demo scenes: with one activation per block.
_base_ = './upernet_roadmap-gelu_demo.py'
model = dict(backbone=dict(arch=dict(step='fewer-activations')))
