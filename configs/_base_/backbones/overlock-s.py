backbone = dict(type='mmlk.OverLoCK', arch='S', norm_cfg=dict(type='SyncBN'))
channels = [64, 128, 448, 640]
