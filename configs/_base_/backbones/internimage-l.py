backbone = dict(type='mmlk.InternImage', arch='L')
channels = [160, 320, 640, 1280]
