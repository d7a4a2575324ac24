backbone = dict(type='mmlk.GFNet', arch='H-Ti')
channels = [64, 128, 256, 512]
