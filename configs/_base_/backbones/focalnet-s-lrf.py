# Kernels from 9x9 on in place of ImageNet's from 3x3 on, which are padded with zeros when they are loaded.
backbone = dict(
    type='mmlk.TimmBackbone', model_name='focalnet_small_lrf', large_kernel=dict(),
    model_args=dict(focal_windows=(9, 9, 9, 9)))
channels = [96, 192, 384, 768]
