backbone = dict(type='mmlk.FlashInternImage', arch='B')
channels = [112, 224, 448, 896]
