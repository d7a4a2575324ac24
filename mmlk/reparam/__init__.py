"""Structural re-parameterization in pure PyTorch.

A block computes the sum of several parallel convolutions, each followed by a BatchNorm. In eval mode each of these
branches is linear, and so is their sum: one convolution with a bias gives the same output. :func:`merge` computes its
weights and replaces the branches. See RepVGG, arXiv:2101.03697, section 3.3, and RepLKNet, arXiv:2203.06717, section 3.
"""
from .branches import ConvNorm, MergeableBranches, ReparamLargeKernel
from .merge import merge

__all__ = ['ConvNorm', 'MergeableBranches', 'ReparamLargeKernel', 'merge']
