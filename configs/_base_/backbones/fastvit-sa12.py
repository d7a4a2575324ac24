backbone = dict(
    type='mmlk.TimmBackbone', model_name='fastvit_sa12', dense='segmentation', large_kernel=dict())
channels = [64, 128, 256, 512]
