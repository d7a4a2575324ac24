# UniRepLKNet-S, ImageNet-22K, on COCO.
# Source: UniRepLKNet detection/configs/coco/casc_mask_rcnn_unireplknet_s_in22k_fpn_3x_coco.py. It does not
# name the weights; here those of the segmentation run.
_base_ = [
    '_base_/backbones/unireplknet-s.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_layer-decay.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.5,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='unireplknet-s_in22k-in1k-384')),
    neck=dict(in_channels=_base_.channels))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.8))
custom_hooks = [
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0001, update_buffers=True, priority=49)]
