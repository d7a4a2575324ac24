backbone = dict(
    type='mmlk.TimmBackbone', model_name='convnext_small.dinov3_lvd1689m', dense='segmentation',
    large_kernel=dict())
channels = [96, 192, 384, 768]
