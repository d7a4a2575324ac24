# Four maps of stride 16, which a neck brings to 4, 8, 16 and 32.
backbone = dict(type='mmlk.ConvNeXtIsotropic', arch='B')
neck = dict(type='Feature2Pyramid', embed_dim=768, rescales=[4, 2, 1, 0.5])
channels = [768] * 4
