# mmseg and mmdet each have a SwinTransformer; both take these. The weights differ, so the leaf names them.
backbone = dict(
    type='SwinTransformer', embed_dims=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24],
    window_size=7, out_indices=(0, 1, 2, 3))
channels = [96, 192, 384, 768]
