backbone = dict(type='mmlk.ConvNeXtV2', arch='H')
channels = [352, 704, 1408, 2816]
