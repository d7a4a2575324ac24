backbone = dict(type='mmlk.TimmBackbone', model_name='rdnet_small', large_kernel=dict())
channels = [264, 512, 760, 1264]
