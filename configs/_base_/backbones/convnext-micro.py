# For CPU minutes, trained from scratch: a third of ConvNeXt-T's width and two thirds of its depth, as
# swin-micro.py is of Swin-T. It has 2.18M parameters, Swin-micro 2.28M.
backbone = dict(type='mmlk.ConvNeXt', arch=dict(depths=(2, 2, 6, 2), dims=(32, 64, 128, 256)))
channels = [32, 64, 128, 256]
