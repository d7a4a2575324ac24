# SyncBN as officially.
backbone = dict(type='mmlk.MogaNet', arch='L', norm_cfg=dict(type='SyncBN'))
channels = [64, 160, 320, 640]
