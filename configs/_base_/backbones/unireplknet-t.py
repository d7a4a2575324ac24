# SyncBN and checkpointing (with_cp) as in the official downstream runs.
backbone = dict(type='mmlk.UniRepLKNet', arch='T', norm_cfg=dict(type='SyncBN'), with_cp=True)
channels = [80, 160, 320, 640]
