# The ConvNeXt roadmap at a quarter of its width on the demo scenes: with 9x9 kernels.
_base_ = './upernet_roadmap-moved-up_demo.py'
model = dict(backbone=dict(arch=dict(kernel_size=9)))
