# Swin-B, ImageNet-1K, on ADE20K.
# Source: mmsegmentation configs/mask2former/mask2former_swin-b-in1k-384x384-pre_8xb2-160k_ade20k-640x640.py.
# Here images are padded to multiples of 32 in the test, as in the official code.
_base_ = [
    '_base_/backbones/swin-b.py', '_base_/models/mask2former.py',
    '_base_/datasets/ade20k_2560x640_short-sides.py', '_base_/schedules/seg_adamw_160k_mask2former.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        pretrain_img_size=384,
        window_size=12,
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/'
            'swin_base_patch4_window12_384_20220317-55b0104a.pth')),
    decode_head=dict(
        in_channels=_base_.channels, num_classes=150, loss_cls=dict(class_weight=[1.0] * 150 + [0.1])))
__free = dict(lr_mult=0.1, decay_mult=0.0)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'backbone.patch_embed.norm': __free, 'backbone.norm': __free,
            'relative_position_bias_table': __free,
            **{f'backbone.stages.{stage}.downsample.norm': __free for stage in range(3)},
            **{f'backbone.stages.{stage}.blocks.{block}.norm': __free
               for stage, depth in enumerate(_base_.backbone.depths) for block in range(depth)}}))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
