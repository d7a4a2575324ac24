backbone = dict(type='mmlk.VAN', arch='B6', norm_cfg=dict(type='SyncBN'))
channels = [96, 192, 384, 768]
