# As replknet31b.py, wider.
backbone = dict(type='mmlk.RepLKNet', arch='31L', norm_cfg=dict(type='SyncBN'), with_cp=True)
channels = [192, 384, 768, 1536]
