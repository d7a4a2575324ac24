"""What leaves training behind: networks in inference form, exported files and merged checkpoints.

``optimize`` is imported when it is first used, so that exported files can be read without PyTorch.
"""
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .optimizing import Optimization, OptimizedNetwork, optimize

__all__ = ['Optimization', 'OptimizedNetwork', 'optimize']


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from . import optimizing
    return getattr(optimizing, name)
