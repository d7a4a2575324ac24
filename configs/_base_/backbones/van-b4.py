backbone = dict(type='mmlk.VAN', arch='B4', norm_cfg=dict(type='SyncBN'))
channels = [64, 128, 320, 512]
