# For CPU minutes, trained from scratch: the kernels of 31B, a fraction of its width and depth.
backbone = dict(
    type='mmlk.RepLKNet',
    arch=dict(
        large_kernel_sizes=[31, 29, 27, 13], layers=[1, 1, 2, 1], channels=[32, 64, 96, 128], small_kernel=5))
channels = [32, 64, 96, 128]
