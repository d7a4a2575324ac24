backbone = dict(type='mmlk.MSCAN', arch='T', norm_cfg=dict(type='SyncBN'))
channels = [32, 64, 160, 256]
