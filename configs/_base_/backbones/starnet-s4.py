backbone = dict(type='mmlk.TimmBackbone', model_name='starnet_s4', large_kernel=dict())
channels = [32, 64, 128, 256]
