# OverLoCK-T, ImageNet-1K, on ADE20K. No such run was published: here the recipe of Mask2Former,
# mask2former_resnet50_ade20k.py, and the drop path of upernet_overlock-t_ade20k.py.
_base_ = [
    '_base_/backbones/overlock-t.py', '_base_/models/mask2former.py',
    '_base_/datasets/ade20k_short-sides.py', '_base_/schedules/seg_adamw_160k_mask2former_layer-decay.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.2,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='overlock-t_in1k')),
    decode_head=dict(
        in_channels=_base_.channels, num_classes=150, loss_cls=dict(class_weight=[1.0] * 150 + [0.1])))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
