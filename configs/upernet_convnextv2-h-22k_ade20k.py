# ConvNeXt V2-H, FCMAE, then fine-tuned on ImageNet-22K, on ADE20K.
# Source: the ConvNeXt V2 paper, without a config: here the values of ConvNeXt-XL from ImageNet-22K. The
# paper starts from weights of ImageNet-22K, which were not published; here from those that were fine-tuned
# on ImageNet-1K after it.
_base_ = [
    '_base_/backbones/convnextv2-h.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k_2560x640.py', '_base_/schedules/seg_adamw_160k_stage-decay.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.4,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='convnextv2-h_in22k-in1k-384')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(426, 426)))
optim_wrapper = dict(optimizer=dict(lr=8e-5))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
