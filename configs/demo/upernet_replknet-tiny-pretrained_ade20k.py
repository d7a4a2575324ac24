# upernet_replknet-tiny_ade20k.py, from the backbone that replknet-tiny_imagenet.py pretrains.
_base_ = './upernet_replknet-tiny_ade20k.py'
model = dict(backbone=dict(init_cfg=dict(
    type='mmlk.Pretrained', checkpoint='work_dirs/replknet-tiny_imagenet/epoch_8.pth')))
