"""Operators for large kernels in pure PyTorch. Importing them needs no OpenMMLab package."""
from .backends import list_backends
from .choice import use_backend
from .circular import circular_conv
from .deformable import dcnv3, dcnv4
from .depthwise import DepthwiseConv2d, depthwise_conv2d, replace_depthwise
from .global_filter import global_filter2d
from .layout import set_memory_format
from .neighborhood import neighborhood_av
from .parc import ParC, ParCOperator, insert_parc

__all__ = ['DepthwiseConv2d', 'ParC', 'ParCOperator', 'circular_conv', 'dcnv3', 'dcnv4', 'depthwise_conv2d',
           'global_filter2d', 'insert_parc', 'list_backends', 'neighborhood_av', 'replace_depthwise',
           'set_memory_format', 'use_backend']
