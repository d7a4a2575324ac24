backbone = dict(type='mmlk.TimmBackbone', model_name='inception_next_base', large_kernel=dict())
channels = [128, 256, 512, 1024]
