backbone = dict(type='mmlk.TimmBackbone', model_name='rdnet_base', large_kernel=dict())
channels = [408, 584, 1000, 1760]
