# SyncBN as officially.
backbone = dict(type='mmlk.MogaNet', arch='S', norm_cfg=dict(type='SyncBN'))
channels = [64, 128, 320, 512]
