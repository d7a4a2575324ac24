# SyncBN and checkpointing (with_cp) as in the official downstream runs.
backbone = dict(type='mmlk.UniRepLKNet', arch='B', norm_cfg=dict(type='SyncBN'), with_cp=True)
channels = [128, 256, 512, 1024]
