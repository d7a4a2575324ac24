# The official configs start the layer scale at 1, which the pretrained weights replace.
backbone = dict(type='mmlk.ConvNeXt', arch='L')
channels = [192, 384, 768, 1536]
