backbone = dict(type='mmlk.OverLoCK', arch='B', norm_cfg=dict(type='SyncBN'))
channels = [80, 160, 528, 720]
