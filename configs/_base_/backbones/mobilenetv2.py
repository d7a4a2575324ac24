backbone = dict(type='mmlk.MobileNetV2', arch='3')
channels = [24, 32, 96, 320]
