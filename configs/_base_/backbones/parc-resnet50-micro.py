# ResNet-50 with ParC at a quarter of its width, for maps of 100x80 pixels and less.
backbone = dict(
    type='mmlk.ParCResNet',
    arch=dict(
        layers=(3, 4, 6, 3), parc_insert_locs=(3, 4, 3, 2), planes=(16, 32, 64, 128),
        stages_rs=(25, 13, 7, 4)))
channels = [64, 128, 256, 512]
