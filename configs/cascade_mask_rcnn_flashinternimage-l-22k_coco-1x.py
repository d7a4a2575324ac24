# FlashInternImage-L, ImageNet-22K, 1x on COCO.
# Source: DCNv4 detection/configs/coco/cascade_flash_intern_image_l_fpn_1x_coco.py
_base_ = [
    '_base_/backbones/flashinternimage-l.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance_800.py', '_base_/schedules/det_adamw_1x_layer-decay.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.4,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='flashinternimage-l_in22k-384')),
    neck=dict(in_channels=_base_.channels, norm_cfg=dict(type='mmlk.ChannelNorm')))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.94))
