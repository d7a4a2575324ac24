"""Operators, in pure torch: importing them needs no OpenMMLab package."""
from .backends import list_backends
from .depthwise import DepthwiseConv2d, depthwise_conv2d, replace_depthwise
from .global_filter import global_filter2d
from .layout import set_memory_format

__all__ = ['DepthwiseConv2d', 'depthwise_conv2d', 'global_filter2d', 'list_backends', 'replace_depthwise',
           'set_memory_format']
