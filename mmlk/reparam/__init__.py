"""Structural re-parameterisation, in pure torch: parallel linear branches that merge into one convolution."""
from .branches import ConvNorm, MergeableBranches, ReparamLargeKernel
from .merge import merge

__all__ = ['ConvNorm', 'MergeableBranches', 'ReparamLargeKernel', 'merge']
