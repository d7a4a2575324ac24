backbone = dict(type='mmlk.TimmBackbone', model_name='repvit_m1_1', norm_eval=True)
channels = [64, 128, 256, 512]
