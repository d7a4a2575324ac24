# ConvNeXt V2-L, FCMAE, then fine-tuned on ImageNet-1K, on ADE20K.
# Source: the ConvNeXt V2 paper, appendix A.4, without a config. Of what it searched (learning rate 1e-4,
# 2e-4, 3e-4, layer decay 0.8, 0.9, drop path 0.1 to 0.4) here are the values of ConvNeXt-B. It tests scales
# from 0.75 to 1.25.
_base_ = [
    '_base_/backbones/convnextv2-l.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py', '_base_/schedules/seg_adamw_160k_stage-decay.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.4,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='convnextv2-l_in1k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 341)))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
