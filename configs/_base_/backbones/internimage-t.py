backbone = dict(type='mmlk.InternImage', arch='T')
channels = [64, 128, 256, 512]
