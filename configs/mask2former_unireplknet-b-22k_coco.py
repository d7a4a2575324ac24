# UniRepLKNet-B, ImageNet-22K, on COCO. No such run was published: here the recipe of Mask2Former,
# mask2former_resnet50_coco.py, with the drop path and, in place of a tenth of the rate, the decay by layers
# of cascade_mask_rcnn_unireplknet-b-22k_coco.py.
_base_ = [
    '_base_/backbones/unireplknet-b.py', '_base_/models/mask2former_instance.py',
    '_base_/datasets/coco_instance_lsj.py', '_base_/schedules/det_adamw_50e_mask2former_layer-decay.py',
    '_base_/runtime_det_iterations.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.6,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='unireplknet-b_in22k-in1k-384')),
    panoptic_head=dict(in_channels=_base_.channels))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))
