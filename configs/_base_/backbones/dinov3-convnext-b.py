backbone = dict(
    type='mmlk.TimmBackbone', model_name='convnext_base.dinov3_lvd1689m', dense='segmentation',
    large_kernel=dict())
channels = [128, 256, 512, 1024]
