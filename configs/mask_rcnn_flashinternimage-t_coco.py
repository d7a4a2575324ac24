# FlashInternImage-T, ImageNet-1K, on COCO.
# Source: DCNv4 detection/configs/coco/mask_rcnn_flash_intern_image_t_fpn_3x_coco.py
_base_ = [
    '_base_/backbones/flashinternimage-t.py', '_base_/models/mask_rcnn.py',
    '_base_/datasets/coco_instance.py', '_base_/schedules/det_adamw_3x_layer-decay.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.2,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='flashinternimage-t_in1k')),
    neck=dict(in_channels=_base_.channels, norm_cfg=dict(type='mmlk.ChannelNorm')))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=1.0))
auto_scale_lr = dict(base_batch_size=64)  # 32 GPUs x 2
