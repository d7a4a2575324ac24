backbone = dict(type='mmlk.FlashInternImage', arch='T')
channels = [64, 128, 256, 512]
