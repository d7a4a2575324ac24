backbone = dict(type='mmlk.ConvNeXtV2', arch='L')
channels = [192, 384, 768, 1536]
