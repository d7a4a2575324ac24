backbone = dict(type='mmlk.ConvNeXtV2', arch='B')
channels = [128, 256, 512, 1024]
