# UperNet for small networks that train from scratch on one device, in minutes.
_base_ = './upernet.py'
# The stock heads' start (0.01) holds learning up for hundreds of iterations.
__init_cfg = dict(type='Normal', std=0.1, override=dict(name='conv_seg'))
model = dict(
    decode_head=dict(channels=32, norm_cfg=dict(type='BN'), init_cfg=__init_cfg),
    auxiliary_head=dict(channels=32, norm_cfg=dict(type='BN'), init_cfg=__init_cfg))
