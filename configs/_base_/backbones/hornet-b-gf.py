backbone = dict(type='mmlk.HorNet', arch='B-GF-384')
channels = [128, 256, 512, 1024]
