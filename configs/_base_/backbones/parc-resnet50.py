backbone = dict(type='mmlk.ParCResNet', arch='50')
channels = [256, 512, 1024, 2048]
