# ResNet-50 at a quarter of its width, where the roadmap to ConvNeXt-T begins.
backbone = dict(
    type='mmlk.ConvNeXtRoadmap',
    arch=dict(depths=[3, 4, 6, 3], dims=[16, 32, 64, 128], step='resnet', kernel_size=3))
channels = [64, 128, 256, 512]
