backbone = dict(type='mmlk.GFNet', arch='H-B')
channels = [96, 192, 384, 768]
