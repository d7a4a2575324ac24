# RepLKNet-tiny with kernels of 3x3 on the demo scenes.
_base_ = '../demo/upernet_replknet-tiny_ade20k.py'
model = dict(backbone=dict(arch=dict(large_kernel_sizes=[3, 3, 3, 3], small_kernel=None)))
