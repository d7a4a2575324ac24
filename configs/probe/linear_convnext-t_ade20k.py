# A linear probe of ConvNeXt-T, ImageNet-1K, on ADE20K: the backbone is frozen.
_base_ = [
    '../_base_/backbones/convnext-t.py', '../_base_/models/linear_probe.py',
    '../_base_/datasets/ade20k.py', '../_base_/schedules/seg_adamw_40k_probe.py', '../_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone, init_cfg=dict(type='mmlk.Pretrained', checkpoint='convnext-t_in1k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
