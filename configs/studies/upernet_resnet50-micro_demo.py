# The same ResNet-50 with a 3x3 convolution in every block.
_base_ = './upernet_parc-resnet50-micro_demo.py'
model = dict(backbone=dict(arch=dict(parc_insert_locs=(3, 4, 6, 3))))
