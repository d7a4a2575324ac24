# mmseg and mmdet each have a ResNeSt; both take these. mmdet's keeps BN in eval mode unless told otherwise.
backbone = dict(
    type='ResNeSt', depth=101, stem_channels=128, radix=2, reduction_factor=4, avg_down_stride=True,
    out_indices=(0, 1, 2, 3), style='pytorch', norm_eval=False,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnest101'))
channels = [256, 512, 1024, 2048]
