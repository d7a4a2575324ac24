# UniRepLKNet-T, ImageNet-1K, on COCO.
# Source: UniRepLKNet detection/configs/coco/casc_mask_rcnn_unireplknet_t_in1k_fpn_3x_coco.py. It gives T
# the twelve layers of the other models, of which its third stage reaches the eighth.
_base_ = [
    '_base_/backbones/unireplknet-t.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_layer-decay.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.3,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='unireplknet-t_in1k')),
    neck=dict(in_channels=_base_.channels))
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(
        decay_rate=0.8,
        num_layers=12,
        custom_keys={'backbone.stages.3': dict(depth=12), 'backbone.downsample_layers.3': dict(depth=12)}))
