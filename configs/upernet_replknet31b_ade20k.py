# RepLKNet-31B, ImageNet-1K, on ADE20K.
# Source: RepLKNet-pytorch segmentation/configs/RepLKNet-31B_1Kpretrain_upernet_160k_ade20k_512.py
# On 8 GPUs: upernet_replknet31b_8xb4_ade20k.py.
_base_ = [
    '_base_/backbones/replknet31b.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_adamw_40k_replknet.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.5,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='replknet-31b_in1k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150))
train_dataloader = dict(batch_size=2)  # on 64 GPUs
