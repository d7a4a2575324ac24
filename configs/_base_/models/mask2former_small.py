# Mask2Former for small networks that train from scratch on one device, in minutes: two layers of deformable
# and three of masked attention, all of a quarter of the width, 20 queries, and losses at 1024 points.
_base_ = './mask2former.py'
__attention = dict(embed_dims=64, num_heads=4)
__ffn = dict(embed_dims=64, feedforward_channels=128)
model = dict(
    decode_head=dict(
        feat_channels=64,
        out_channels=64,
        num_queries=20,
        pixel_decoder=dict(
            norm_cfg=dict(num_groups=8),
            encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=__attention, ffn_cfg=__ffn)),
            positional_encoding=dict(num_feats=32)),
        positional_encoding=dict(num_feats=32),
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(self_attn_cfg=__attention, cross_attn_cfg=__attention, ffn_cfg=__ffn)),
        train_cfg=dict(num_points=1024)))
