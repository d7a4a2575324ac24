"""Weights: where they are, how they are read safely, and that they really fill the module.

Names that need PyTorch are imported when they are first used, so that the catalogue can be read without it.
"""
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import WeightsError

if TYPE_CHECKING:
    from .loading import LoadReport, load
    from .pretrained import Pretrained
    from .saving import SavedWeights, save

__all__ = ['LoadReport', 'Pretrained', 'SavedWeights', 'WeightsError', 'load', 'save']


def __getattr__(name: str) -> Any:
    if name in ('LoadReport', 'load'):
        return getattr(import_module('mmlk.weights.loading'), name)
    if name == 'Pretrained':
        return import_module('mmlk.weights.pretrained').Pretrained
    if name in ('SavedWeights', 'save'):
        return getattr(import_module('mmlk.weights.saving'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
