"""Weights: where they are, how they are read safely, and that they really fill the module.

The names are imported when they are first used, so that the catalogue and downloads work without importing torch.
"""
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import WeightsError
    from .loading import LoadReport, load
    from .pretrained import Pretrained

__all__ = ['Pretrained', 'LoadReport', 'WeightsError', 'load']

_MODULES = {'Pretrained': 'pretrained', 'LoadReport': 'loading', 'WeightsError': 'errors', 'load': 'loading'}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__} has no attribute {name}')
    return getattr(importlib.import_module(f'.{_MODULES[name]}', __name__), name)
