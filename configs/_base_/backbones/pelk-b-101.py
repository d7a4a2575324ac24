# SyncBN beside the shared kernels.
backbone = dict(type='mmlk.PeLK', arch='B-101', norm_cfg=dict(type='SyncBN'))
channels = [166, 332, 665, 1331]
