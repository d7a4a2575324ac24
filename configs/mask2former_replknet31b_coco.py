# RepLKNet-31B, ImageNet-1K, on COCO. No such run was published: here the recipe of Mask2Former,
# mask2former_resnet50_coco.py, and the drop path of cascade_mask_rcnn_replknet31b_coco.py.
_base_ = [
    '_base_/backbones/replknet31b.py', '_base_/models/mask2former_instance.py',
    '_base_/datasets/coco_instance_lsj.py', '_base_/schedules/det_adamw_50e_mask2former_layer-decay.py',
    '_base_/runtime_det_iterations.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.6,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='replknet-31b_in1k')),
    panoptic_head=dict(in_channels=_base_.channels))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
