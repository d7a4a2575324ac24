# ConvNeXt-XL, ImageNet-22K, on COCO.
# Source: ConvNeXt object_detection/configs/convnext/
# cascade_mask_rcnn_convnext_xlarge_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco_in22k.py
_base_ = [
    '_base_/backbones/convnext-xl.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_layer-decay.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.8,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='convnext-xl_in22k')),
    neck=dict(in_channels=_base_.channels))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
