backbone = dict(type='mmlk.ParCConvNeXt', arch='XT')
channels = [48, 96, 192, 384]
