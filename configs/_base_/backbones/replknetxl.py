# The arch norms each output. It was pretrained with mean = std = 127.5, which the leaf puts in
# data_preprocessor.
backbone = dict(type='mmlk.RepLKNet', arch='XL', norm_cfg=dict(type='SyncBN'), with_cp=True)
channels = [256, 512, 1024, 2048]
