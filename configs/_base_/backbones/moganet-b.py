# BN on each device: the official config asks for SyncBN by arguments that its backbone does not read.
backbone = dict(type='mmlk.MogaNet', arch='B')
channels = [64, 160, 320, 512]
