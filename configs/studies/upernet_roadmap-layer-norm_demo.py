# The ConvNeXt roadmap at a quarter of its width on the demo scenes: with LayerNorm in place of BatchNorm.
_base_ = './upernet_roadmap-fewer-norms_demo.py'
model = dict(backbone=dict(arch=dict(step='layer-norm')))
