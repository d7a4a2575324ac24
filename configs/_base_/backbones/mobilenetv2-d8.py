# Stride 8, as mmseg's: the last two stages keep the resolution, and the first block of each row is dilated.
backbone = dict(
    type='mmlk.MobileNetV2',
    strides=(2, 2, 1, 1),
    dilations=(1, 1, (2, 1, 1, 1, 2, 1, 1), (4, 1, 1, 4)),
    norm_cfg=dict(type='SyncBN'))
channels = [24, 32, 96, 320]
