# OverLoCK-T, ImageNet-1K, on COCO. No such run was published: here the recipe of Mask2Former,
# mask2former_resnet50_coco.py, and the drop path of mask_rcnn_overlock-t_coco.py.
_base_ = [
    '_base_/backbones/overlock-t.py', '_base_/models/mask2former_instance.py',
    '_base_/datasets/coco_instance_lsj.py', '_base_/schedules/det_adamw_50e_mask2former_layer-decay.py',
    '_base_/runtime_det_iterations.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        detection=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='overlock-t_in1k')),
    panoptic_head=dict(in_channels=_base_.channels))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
