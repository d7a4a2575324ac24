# SyncBN beside the shared kernels.
backbone = dict(type='mmlk.PeLK', arch='T', norm_cfg=dict(type='SyncBN'))
channels = [124, 249, 499, 998]
