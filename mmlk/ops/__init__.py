"""Operators, in pure torch: importing them needs no OpenMMLab package."""
from .backends import backends
from .depthwise import DepthwiseConv2d, depthwise_conv2d

__all__ = ['DepthwiseConv2d', 'backends', 'depthwise_conv2d']
