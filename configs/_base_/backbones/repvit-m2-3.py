backbone = dict(type='mmlk.TimmBackbone', model_name='repvit_m2_3', norm_eval=True)
channels = [80, 160, 320, 640]
