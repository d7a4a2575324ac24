# ParC-ResNet-50, ImageNet-1K, on COCO.
# Source: the README of ParC-Net; the recipe is edgeformer_v2_object_detection configs/
# resnet50/cascade_mask_rcnn_resnet50_gcc_...py by the author of Fast-ParC.
# No weights of this network were published: pretrain, and set model.backbone.init_cfg.
_base_ = [
    '_base_/backbones/parc-resnet50.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_parc.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(_base_.backbone, frozen_stages=1, norm_eval=True),
    neck=dict(in_channels=_base_.channels))
