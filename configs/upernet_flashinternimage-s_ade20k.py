# FlashInternImage-S, ImageNet-1K, on ADE20K.
# Source: DCNv4 segmentation/configs/ade20k/upernet_flash_internimage_s_512_160k_ade20k.py
_base_ = [
    '_base_/backbones/flashinternimage-s.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k_multiple32.py', '_base_/schedules/seg_adamw_160k_layer-decay.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.3,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='flashinternimage-s_in1k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150))
optim_wrapper = dict(optimizer=dict(lr=6e-5), paramwise_cfg=dict(decay_rate=1.0))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
