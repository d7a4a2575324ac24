# Mask2Former for instance segmentation as mmdet's: the head of mask2former.py. The leaf adds backbone and
# in_channels; other data than COCO change num_things_classes in two places, and class_weight, in which "no
# object" comes last. Images are padded to the size of the training crops.
_base_ = './mask2former.py'
__classes = dict(num_things_classes=80, num_stuff_classes=0)
__head = {
    key: value
    for key, value in _base_.model.decode_head.items() if key not in ('align_corners', 'train_cfg')}
model = dict(
    _delete_=True,
    type='Mask2Former',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=True,
        mask_pad_value=0,
        pad_seg=False,
        batch_augments=[
            dict(
                type='BatchFixedSizePad', size=(1024, 1024), img_pad_value=0, pad_mask=True, mask_pad_value=0,
                pad_seg=False)
        ]),
    panoptic_head=dict(
        __head,
        **__classes,
        loss_cls=dict(_base_.model.decode_head.loss_cls, class_weight=[1.0] * 80 + [0.1])),
    panoptic_fusion_head=dict(type='MaskFormerFusionHead', **__classes, loss_panoptic=None),
    train_cfg=_base_.model.decode_head.train_cfg,
    test_cfg=dict(panoptic_on=False, semantic_on=False, instance_on=True, max_per_image=100))
