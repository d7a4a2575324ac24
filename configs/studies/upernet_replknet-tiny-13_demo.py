# RepLKNet-tiny with kernels of 13x13 on the demo scenes.
_base_ = '../demo/upernet_replknet-tiny_ade20k.py'
model = dict(backbone=dict(arch=dict(large_kernel_sizes=[13, 13, 13, 13])))
