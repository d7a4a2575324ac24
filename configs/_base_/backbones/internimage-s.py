backbone = dict(type='mmlk.InternImage', arch='S')
channels = [80, 160, 320, 640]
