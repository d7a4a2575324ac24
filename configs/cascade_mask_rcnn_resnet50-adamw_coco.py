# ResNet-50, ImageNet-1K, on COCO as the baseline of ParC-ResNet-50.
# Source: the README of ParC-Net; the recipe is edgeformer_v2_object_detection configs/
# resnet50/cascade_mask_rcnn_resnet50_...py by the author of Fast-ParC.
# torchvision's second weights stand for its own, which were not published.
_base_ = [
    '_base_/backbones/resnet50.py', '_base_/models/cascade_mask_rcnn_4conv1fc.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_parc.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        init_cfg=dict(
            type='Pretrained', checkpoint='https://download.pytorch.org/models/resnet50-11ad3fa6.pth')),
    neck=dict(in_channels=_base_.channels))
