# The ConvNeXt roadmap at a quarter of its width on the demo scenes: with one norm per block.
_base_ = './upernet_roadmap-fewer-activations_demo.py'
model = dict(backbone=dict(arch=dict(step='fewer-norms')))
