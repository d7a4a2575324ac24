# The heads that mmdet gives ResNeSt: four convolutions with SyncBN and one linear layer, and SyncBN in the
# mask head.
_base_ = './cascade_mask_rcnn.py'
model = dict(
    roi_head=dict(
        bbox_head=[
            dict(
                head, type='Shared4Conv1FCBBoxHead', conv_out_channels=256,
                norm_cfg=dict(type='SyncBN', requires_grad=True)) for head in _base_.model.roi_head.bbox_head
        ],
        mask_head=dict(norm_cfg=dict(type='SyncBN', requires_grad=True))))
