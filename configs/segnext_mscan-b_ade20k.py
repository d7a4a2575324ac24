# SegNeXt-B, ImageNet-1K, on ADE20K.
# Source: SegNeXt local_configs/segnext/base/segnext.base.512x512.ade.160k.py
_base_ = [
    '_base_/backbones/mscan-b.py', '_base_/models/segnext.py',
    '_base_/datasets/ade20k_multiple32.py', '_base_/schedules/seg_adamw_160k_segnext.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.1,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='mscan-b_in1k')),
    decode_head=dict(
        in_channels=_base_.channels[1:],
        channels=512,
        ham_channels=512,
        ham_kwargs=dict(MD_R=64),
        num_classes=150))
train_dataloader = dict(batch_size=4)  # on 4 GPUs
