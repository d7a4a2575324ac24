# UniRepLKNet-S, ImageNet-1K, on COCO.
# Source: UniRepLKNet detection/configs/coco/casc_mask_rcnn_unireplknet_s_in1k_fpn_3x_coco.py
_base_ = [
    '_base_/backbones/unireplknet-s.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_layer-decay.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.5,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='unireplknet-s_in1k')),
    neck=dict(in_channels=_base_.channels))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.8))
