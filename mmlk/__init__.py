"""Large-kernel convolutional backbones for OpenMMLab's dense-prediction toolboxes."""

__version__ = '0.1.0'
