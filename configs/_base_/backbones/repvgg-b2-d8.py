# Stride 8, as the official PSPNet: the last two stages keep the resolution and are dilated.
backbone = dict(
    type='mmlk.RepVGG', arch='B2', strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4),
    norm_cfg=dict(type='SyncBN'))
channels = [160, 320, 640, 2560]
