# A linear probe of RepLKNet-31B, ImageNet-22K, on ADE20K: the backbone is frozen.
_base_ = [
    '../_base_/backbones/replknet31b.py', '../_base_/models/linear_probe.py',
    '../_base_/datasets/ade20k.py', '../_base_/schedules/seg_adamw_40k_probe.py', '../_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone, init_cfg=dict(type='mmlk.Pretrained', checkpoint='replknet-31b_in22k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
