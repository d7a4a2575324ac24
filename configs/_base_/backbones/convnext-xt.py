# ConvNeXt-T at half its width, the baseline of ParC-ConvNeXt-XT.
backbone = dict(type='mmlk.ConvNeXt', arch=dict(depths=(3, 3, 9, 3), dims=(48, 96, 192, 384)))
channels = [48, 96, 192, 384]
