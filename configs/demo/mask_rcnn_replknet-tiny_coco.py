# A Mask R-CNN with 31x31 kernels that trains on a CPU in minutes, on scenes drawn in COCO's layout.
_base_ = [
    '../_base_/backbones/replknet-tiny.py', '../_base_/models/mask_rcnn.py',
    '../_base_/datasets/demo_coco.py', '../_base_/schedules/demo_det.py', '../_base_/runtime_det.py',
]
model = dict(
    backbone=_base_.backbone,
    neck=dict(in_channels=_base_.channels, out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=5),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=5)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)))
