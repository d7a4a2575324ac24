# Swin's box heads, which RepLKNet's runs share: four convolutions with SyncBN and one linear layer, GIoU on
# decoded boxes, one set of deltas per class.
_base_ = './cascade_mask_rcnn.py'
model = dict(
    roi_head=dict(
        bbox_head=[
            dict(
                type='ConvFCBBoxHead',
                num_shared_convs=4,
                num_shared_fcs=1,
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=head.bbox_coder,
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                norm_cfg=dict(type='SyncBN', requires_grad=True),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0)) for head in _base_.model.roi_head.bbox_head
        ]))
