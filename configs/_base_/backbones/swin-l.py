# mmseg and mmdet each have a SwinTransformer; both take these. The weights differ, so the leaf names them.
backbone = dict(
    type='SwinTransformer', embed_dims=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48],
    window_size=7, out_indices=(0, 1, 2, 3))
channels = [192, 384, 768, 1536]
