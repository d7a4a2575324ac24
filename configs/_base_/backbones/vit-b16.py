# Plain ViT: four maps of stride 16, which a neck brings to 4, 8, 16 and 32.
backbone = dict(
    type='VisionTransformer',
    img_size=(512, 512),
    patch_size=16,
    embed_dims=768,
    num_layers=12,
    num_heads=12,
    mlp_ratio=4,
    out_indices=(2, 5, 8, 11),
    qkv_bias=True,
    final_norm=True,
    norm_cfg=dict(type='LN', eps=1e-6),
    interpolate_mode='bicubic')
neck = dict(type='MultiLevelNeck', in_channels=[768] * 4, out_channels=768, scales=[4, 2, 1, 0.5])
channels = [768] * 4
