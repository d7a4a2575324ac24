# ConvNeXt-XT, ImageNet-1K, on COCO as the baseline of ParC-ConvNeXt-XT.
# Source: the README of ParC-Net; the recipe is edgeformer_v2_object_detection configs/
# convnext_xt/cascade_mask_rcnn_convnext_xt_...py by the author of Fast-ParC.
# No weights of this network were published: pretrain, and set model.backbone.init_cfg.
_base_ = [
    '_base_/backbones/convnext-xt.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_layer-decay.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.4),
    neck=dict(in_channels=_base_.channels))
