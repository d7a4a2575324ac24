# BN on each device: the official config asks for SyncBN by arguments that its backbone does not read.
backbone = dict(type='mmlk.MogaNet', arch='S')
channels = [64, 128, 320, 512]
