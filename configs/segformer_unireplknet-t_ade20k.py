# UniRepLKNet-T, ImageNet-1K, under SegFormer's head of linear layers on ADE20K, for
# comparisons that cost little. No such run was published: here the recipe of mmsegmentation
# configs/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py, with the drop path of
# upernet_unireplknet-t_ade20k.py.
_base_ = [
    '_base_/backbones/unireplknet-t.py', '_base_/models/segformer.py',
    '_base_/datasets/ade20k_multiple32.py', '_base_/schedules/seg_adamw_160k_segformer.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.backbone,
        drop_path_rate=0.2,
        init_cfg=dict(type='mmlk.Pretrained', checkpoint='unireplknet-t_in1k')),
    decode_head=dict(in_channels=_base_.channels, num_classes=150))
train_dataloader = dict(batch_size=2)  # on 8 GPUs
