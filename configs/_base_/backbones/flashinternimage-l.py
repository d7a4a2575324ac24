backbone = dict(type='mmlk.FlashInternImage', arch='L')
channels = [160, 320, 640, 1280]
