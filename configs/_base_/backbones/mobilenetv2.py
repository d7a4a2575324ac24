backbone = dict(type='mmlk.MobileNetV2', arch='3', norm_cfg=dict(type='SyncBN'))
channels = [24, 32, 96, 320]
