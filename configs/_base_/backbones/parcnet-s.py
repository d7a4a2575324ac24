# Pretrained on pixels in BGR order, divided by 255: the leaf tells the preprocessor.
backbone = dict(
    type='mmlk.ParCNet', arch='S', norm_cfg=dict(type='SyncBN'),
    init_cfg=dict(type='mmlk.Pretrained', checkpoint='parcnet-s_in1k'))
channels = [64, 96, 128, 160]
