# As mmseg builds it, nothing frozen, for training from scratch.
backbone = dict(type='ResNet', depth=18, out_indices=(0, 1, 2, 3), style='pytorch', norm_cfg=dict(type='BN'))
channels = [64, 128, 256, 512]
