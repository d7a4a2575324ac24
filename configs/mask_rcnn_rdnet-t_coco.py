# RDNet-T, ImageNet-1K, on COCO.
# Source: rdnet detection/configs/rdnet/mask_rcnn_rdnet_tiny_3x.py
# Trained in mixed precision (--amp).
_base_ = [
    '_base_/backbones/rdnet-t.py', '_base_/models/mask_rcnn.py', '_base_/datasets/coco_instance.py',
    '_base_/schedules/det_adamw_3x_rdnet.py', '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        dense='detection',
        drop_path_rate=0.2,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='rdnet-t_in1k')),
    neck=dict(in_channels=_base_.channels, norm_cfg=dict(type='SyncBN', requires_grad=True)))
optim_wrapper = dict(
    optimizer=dict(lr=3e-4, weight_decay=0.05),
    paramwise_cfg=dict(decay_rate=0.95, custom_keys=dict(
        neck=dict(lr_mult=0.95**-2),
        rpn_head=dict(lr_mult=0.95**-2),
        roi_head=dict(lr_mult=0.95**-2),
        out_norms=dict(lr_mult=0.95**-2))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
train_dataloader = dict(batch_size=4)  # on 4 GPUs
