# SegNeXt-B, ImageNet-1K, on Cityscapes.
# Source: SegNeXt local_configs/segnext/base/segnext.base.1024x1024.city.160k.py
_base_ = [
    '_base_/backbones/mscan-b.py', '_base_/models/segnext.py',
    '_base_/datasets/cityscapes_1024.py', '_base_/schedules/seg_adamw_160k_segnext.py',
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
        num_classes=19),
    test_cfg=dict(mode='slide', crop_size=(1024, 1024), stride=(768, 768)))
train_dataloader = dict(batch_size=2)  # on 4 GPUs
auto_scale_lr = dict(base_batch_size=8)
