backbone = dict(type='mmlk.RepVGG', arch='A0')
channels = [48, 96, 192, 1280]
