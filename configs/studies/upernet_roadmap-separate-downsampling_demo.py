# The ConvNeXt roadmap at a quarter of its width on the demo scenes: with separate
# downsampling layers and layer scale, which is ConvNeXt.
_base_ = './upernet_roadmap-layer-norm_demo.py'
model = dict(backbone=dict(arch=dict(step='separate-downsampling', layer_scale_init_value=1e-6)))
