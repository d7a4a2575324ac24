backbone = dict(type='mmlk.MSCAN', arch='S', norm_cfg=dict(type='SyncBN'))
channels = [64, 128, 320, 512]
