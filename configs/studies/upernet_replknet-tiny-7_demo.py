# RepLKNet-tiny with kernels of 7x7 on the demo scenes.
_base_ = '../demo/upernet_replknet-tiny_ade20k.py'
model = dict(backbone=dict(arch=dict(large_kernel_sizes=[7, 7, 7, 7])))
