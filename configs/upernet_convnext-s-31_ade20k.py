# ConvNeXt-S with kernels of 31 to 13, ImageNet-1K for 120 epochs, on ADE20K.
# Source: appendix of the RepLKNet paper, 80k iterations; the rest, which it does not give, is of the run
# that repeats its ConvNeXt-T, SLaK segmentation/configs/upernet_slak_tiny_512_80k_ade20k_ss.py. No weights
# were published: pretrain, and set model.backbone.init_cfg.
_base_ = [
    '_base_/backbones/convnext-s.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_adamw_80k_study.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(_base_.backbone, arch='S-31', norm_cfg=dict(type='SyncBN'), drop_path_rate=0.1),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 341)))
