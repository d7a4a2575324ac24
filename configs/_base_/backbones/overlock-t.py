backbone = dict(type='mmlk.OverLoCK', arch='T', norm_cfg=dict(type='SyncBN'))
channels = [64, 128, 384, 640]
