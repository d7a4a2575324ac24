# The official configs start the layer scale at 1, which the pretrained weights replace.
backbone = dict(type='mmlk.ConvNeXt', arch='B')
channels = [128, 256, 512, 1024]
