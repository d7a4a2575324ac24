backbone = dict(type='mmlk.MSCAN', arch='L', norm_cfg=dict(type='SyncBN'))
channels = [64, 128, 320, 512]
