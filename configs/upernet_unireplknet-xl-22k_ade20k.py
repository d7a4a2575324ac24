# UniRepLKNet-XL, ImageNet-22K, on ADE20K.
# No config was published: here that of L, UniRepLKNet
# segmentation/configs/ade20k/upernet_unireplknet_l_in22k_640_160k_ade20k.py. It defines 640x640
# crops that its training set does not read: it learned from 512x512, as here.
_base_ = [
    '_base_/backbones/unireplknet-xl.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k_2560x640_multiple32.py', '_base_/schedules/seg_adamw_160k_layer-decay.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.4,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='unireplknet-xl_in22k-in1k-384')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.85))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
