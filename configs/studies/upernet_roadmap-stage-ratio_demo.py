# The ConvNeXt roadmap at a quarter of its width on the demo scenes: with blocks per stage of 3, 3, 9, 3.
_base_ = './upernet_roadmap-resnet50_demo.py'
model = dict(backbone=dict(arch=dict(depths=[3, 3, 9, 3])))
