# ParC-Net-S, ImageNet-1K, on Pascal VOC 2012.
# Source: the README of ParC-Net; the recipe is its
# config/segmentation/edgeformer/deeplabv3_edgeformer_s.yaml, trained in mixed precision (--amp). It trains
# on COCO's images of the same classes as well (50 epochs of both), for which mmseg has no dataset: this
# config is not expected to reach the published result. Its head gathers the branches by a 1x1 convolution,
# mmseg's by a 3x3.
_base_ = [
    '_base_/backbones/parcnet-s.py', '_base_/models/deeplabv3.py',
    '_base_/datasets/voc12aug.py', '_base_/schedules/seg_adamw_50e_cosine.py', '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size, mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=False),
    backbone=dict(_base_.backbone, output_stride=16),
    decode_head=dict(in_channels=_base_.channels[3], num_classes=21))
