backbone = dict(type='mmlk.HorNet', arch='T-GF-384')
channels = [64, 128, 256, 512]
