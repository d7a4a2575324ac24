backbone = dict(type='mmlk.ParCMobileNetV2', arch='1.0')
channels = [24, 32, 96, 320]
