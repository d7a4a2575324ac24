"""What leaves training behind: merged checkpoints, exported files and networks in inference form."""
from .hooks import OptimizeHook
from .optimizing import Optimization, OptimizedNetwork, optimize

__all__ = ['Optimization', 'OptimizeHook', 'OptimizedNetwork', 'optimize']
