backbone = dict(type='mmlk.HorNet', arch='S-GF-384')
channels = [96, 192, 384, 768]
