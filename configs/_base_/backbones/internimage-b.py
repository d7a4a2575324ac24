backbone = dict(type='mmlk.InternImage', arch='B')
channels = [112, 224, 448, 896]
