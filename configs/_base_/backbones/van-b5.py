backbone = dict(type='mmlk.VAN', arch='B5', norm_cfg=dict(type='SyncBN'))
channels = [96, 192, 480, 768]
