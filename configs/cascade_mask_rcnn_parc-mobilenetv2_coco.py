# ParC-MobileNetV2, ImageNet-1K, on COCO.
# Source: the README of ParC-Net; the recipe is edgeformer_v2_object_detection configs/
# mobilenetv2/cascade_mask_rcnn_mv2_gcc_...py by the author of Fast-ParC.
# Its last map is that of the classifier's 1280 channels there, that of 320 before them here.
# No weights of this network were published: pretrain, and set model.backbone.init_cfg.
_base_ = [
    '_base_/backbones/parc-mobilenetv2.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_parc.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=_base_.backbone,
    neck=dict(in_channels=_base_.channels))
