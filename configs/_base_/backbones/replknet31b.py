# SyncBN and checkpointing (with_cp) as in the official downstream runs. Checkpointing keeps only the input
# of each block, at the price of a second forward: set it to False where memory allows.
backbone = dict(type='mmlk.RepLKNet', arch='31B', norm_cfg=dict(type='SyncBN'), with_cp=True)
channels = [128, 256, 512, 1024]
