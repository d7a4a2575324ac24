backbone = dict(type='mmlk.TimmBackbone', model_name='inception_next_tiny', large_kernel=dict())
channels = [96, 192, 384, 768]
