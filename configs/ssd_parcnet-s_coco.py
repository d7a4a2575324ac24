# ParC-Net-S, ImageNet-1K, on COCO.
# Source: the README of ParC-Net; the recipe is its config/detection/edgeformer/ssd_edgeformer_s.yaml,
# trained in mixed precision (--amp). Its heads project each map to 64 to 512 channels by 1x1 convolutions
# first and its last map is an average; the heads here are mmdet's.
_base_ = [
    '_base_/backbones/parcnet-s.py', '_base_/models/ssdlite.py',
    '_base_/datasets/coco_ssd_320.py', '_base_/schedules/det_adamw_200e_cosine.py', '_base_/runtime_det.py',
]
model = dict(backbone=dict(_base_.backbone, out_indices=(2, 3)))
