backbone = dict(type='mmlk.TimmBackbone', model_name='rdnet_tiny', large_kernel=dict())
channels = [256, 440, 744, 1040]
