# Swin-B, ImageNet-1K, on COCO.
# Source: Mask2Former configs/coco/instance-segmentation/swin/maskformer2_swin_base_384_bs16_50ep.yaml. The
# layout is that of mmdetection's smaller networks, which it has for instances.
# Trained in mixed precision (--amp).
_base_ = [
    '_base_/backbones/swin-b.py', '_base_/models/mask2former_instance.py',
    '_base_/datasets/coco_instance_lsj.py', '_base_/schedules/det_adamw_50e_mask2former.py',
    '_base_/runtime_det_iterations.py',
]
model = dict(
    backbone=dict(
        _base_.backbone,
        pretrain_img_size=384,
        window_size=12,
        drop_path_rate=0.3,
        convert_weights=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
            'swin_base_patch4_window12_384.pth')),
    panoptic_head=dict(in_channels=_base_.channels))
__free = dict(lr_mult=0.1, decay_mult=0.0)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'backbone.patch_embed.norm': __free, 'backbone.norm': __free,
            'relative_position_bias_table': __free,
            **{f'backbone.stages.{stage}.downsample.norm': __free for stage in range(3)},
            **{f'backbone.stages.{stage}.blocks.{block}.norm': __free
               for stage, depth in enumerate(_base_.backbone.depths) for block in range(depth)}}))
