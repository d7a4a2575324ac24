backbone = dict(type='mmlk.FlashInternImage', arch='S')
channels = [80, 160, 320, 640]
