# InternImage-XL, ImageNet-22K, on COCO.
# Source: InternImage detection/configs/coco/cascade_internimage_xl_fpn_3x_coco.py
# Its `offset_lr_scale` is of no effect: it is for names that InternImage does not have.
_base_ = [
    '_base_/backbones/internimage-xl.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_layer-decay.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.6,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='internimage-xl_in22k-384')),
    neck=dict(in_channels=_base_.channels))
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.9))
auto_scale_lr = dict(base_batch_size=64)  # 32 GPUs x 2
custom_hooks = [
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0001, update_buffers=True, priority=49)]
