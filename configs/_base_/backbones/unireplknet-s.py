# SyncBN and checkpointing (with_cp) as in the official downstream runs.
backbone = dict(type='mmlk.UniRepLKNet', arch='S', norm_cfg=dict(type='SyncBN'), with_cp=True)
channels = [96, 192, 384, 768]
