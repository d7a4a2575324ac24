# MobileNetV2 with ParC where the official code has it, for maps of 100x80 pixels and less.
_base_ = './upernet_mobilenetv2-3_demo.py'
model = dict(backbone=dict(
    type='mmlk.ParCMobileNetV2',
    arch=dict(
        _delete_=True, ParC_insert_locs=(1, 2, 3, 2, 2, 2, 1), stages_rs=(50, 25, 13, 7, 7, 4, 4))))
