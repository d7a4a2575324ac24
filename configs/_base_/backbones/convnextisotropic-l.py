# Four maps of stride 16, which a neck brings to 4, 8, 16 and 32.
backbone = dict(type='mmlk.ConvNeXtIsotropic', arch='L')
neck = dict(type='Feature2Pyramid', embed_dim=1024, rescales=[4, 2, 1, 0.5])
channels = [1024] * 4
