backbone = dict(type='mmlk.GFNet', arch='H-S')
channels = [96, 192, 384, 768]
