backbone = dict(
    type='mmlk.TimmBackbone', model_name='convnext_large.dinov3_lvd1689m', dense='segmentation',
    large_kernel=dict())
channels = [192, 384, 768, 1536]
