"""Operators, in pure torch: importing them needs no OpenMMLab package."""
from .backends import backends
from .depthwise import DepthwiseConv2d, depthwise_conv2d, replace_depthwise

__all__ = ['DepthwiseConv2d', 'backends', 'depthwise_conv2d', 'replace_depthwise']
