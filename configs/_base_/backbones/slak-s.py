# SyncBN in the branches of the kernels, as officially.
backbone = dict(type='mmlk.SLaK', arch='S', norm_cfg=dict(type='SyncBN'))
channels = [124, 249, 499, 998]
