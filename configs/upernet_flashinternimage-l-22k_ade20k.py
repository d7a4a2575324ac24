# FlashInternImage-L, ImageNet-22K, on ADE20K.
# Source: DCNv4 segmentation/configs/ade20k/upernet_flash_internimage_l_640_160k_ade20k.py
_base_ = [
    '_base_/backbones/flashinternimage-l.py', '_base_/models/upernet.py',
    '_base_/datasets/ade20k_2560x640_crop640_multiple32.py', '_base_/schedules/seg_adamw_160k_layer-decay.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.4,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='flashinternimage-l_in22k-384')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=150))
optim_wrapper = dict(
    optimizer=dict(lr=2e-5), paramwise_cfg=dict(decay_rate=0.94), clip_grad=dict(max_norm=0.1, norm_type=2))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
__load, __several = _base_.tta_pipeline
tta_pipeline = [
    __load,
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(int(2560 * ratio), int(640 * ratio)), keep_ratio=True)
             for ratio in (0.75, 1.0, 1.25)],
            *__several.transforms[1:],
        ]),
]
