# RepLKNet-31L, ImageNet-22K, on ADE20K.
# Source: RepLKNet-pytorch segmentation/configs/RepLKNet-31L_22Kpretrain_upernet_160k_ade20k_640.py
# On 8 GPUs: upernet_replknet31l-22k_8xb4_ade20k.py.
_base_ = [
    '_base_/backbones/replknet31l.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k_640.py', '_base_/schedules/seg_adamw_80k_replknet.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.3,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='replknet-31l_in22k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(426, 426)))
train_dataloader = dict(batch_size=1)  # on 64 GPUs
