"""Operators, in pure torch: importing them needs no OpenMMLab package."""
from .backends import backends
from .depthwise import DepthwiseConv2d, depthwise_conv2d, replace_depthwise
from .layout import set_memory_format

__all__ = ['DepthwiseConv2d', 'backends', 'depthwise_conv2d', 'replace_depthwise', 'set_memory_format']
