# SyncBN in the branches of the kernels, as officially.
backbone = dict(type='mmlk.SLaK', arch='B', norm_cfg=dict(type='SyncBN'))
channels = [166, 332, 665, 1331]
