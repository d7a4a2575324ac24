# For CPU minutes, trained from scratch: a third of Swin-T's width and two thirds of its depth.
backbone = dict(
    type='SwinTransformer', embed_dims=32, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], window_size=7,
    out_indices=(0, 1, 2, 3), drop_path_rate=0.0)
channels = [32, 64, 128, 256]
