# RepLKNet-XL, MegData73M, on ADE20K.
# Source: RepLKNet-pytorch segmentation/configs/RepLKNet-XL_MegData73M_upernet_160k_ade20k_640.py. Its
# training set reads `test_pipeline`, which cannot train; ours reads the train pipeline that the same file
# defines.
# mean = std = 127.5 as in pretraining.
_base_ = [
    '_base_/backbones/replknetxl.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k_640.py', '_base_/schedules/seg_adamw_160k.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size, mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.5,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='replknet-xl_meg73m')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(426, 426)))
train_dataloader = dict(batch_size=2)  # on 16 GPUs
