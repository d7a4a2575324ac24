# ConvNeXt-B, ImageNet-1K, on ADE20K. No such run was published: here the recipe of Mask2Former,
# mask2former_resnet50_ade20k.py, with the drop path and, in place of a tenth of the rate, the decay by stages
# of upernet_convnext-b_ade20k.py, whose rate is the same.
_base_ = [
    '_base_/backbones/convnext-b.py', '_base_/models/mask2former.py',
    '_base_/datasets/ade20k_short-sides.py', '_base_/schedules/seg_adamw_160k_mask2former_layer-decay.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.4,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='convnext-b_in1k-noema')),
    decode_head=dict(
        in_channels=_base_.channels, num_classes=150, loss_cls=dict(class_weight=[1.0] * 150 + [0.1])))
optim_wrapper = dict(
    paramwise_cfg=dict(
        decay_rate=0.9,
        decay_type='stage_wise',
        num_layers=12,
        custom_keys={'backbone.downsample_layers': dict(depth=0), 'backbone.norm': dict(depth='head')}))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
