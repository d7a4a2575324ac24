# The ConvNeXt roadmap at a quarter of its width on the demo scenes: with the depthwise convolution first in
# its block.
_base_ = './upernet_roadmap-inverted_demo.py'
model = dict(backbone=dict(arch=dict(step='moved-up')))
