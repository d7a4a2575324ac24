backbone = dict(type='mmlk.VAN', arch='B0', norm_cfg=dict(type='SyncBN'))
channels = [32, 64, 160, 256]
