"""Weights: where they are, how they are read safely, and that they really fill the module."""
from .errors import WeightsError
from .load import LoadReport, load
from .pretrained import Pretrained

__all__ = ['Pretrained', 'LoadReport', 'WeightsError', 'load']
