# Four maps of stride 16, which a neck brings to 4, 8, 16 and 32.
backbone = dict(type='mmlk.ConvNeXtIsotropic', arch='S')
neck = dict(type='Feature2Pyramid', embed_dim=384, rescales=[4, 2, 1, 0.5])
channels = [384] * 4
