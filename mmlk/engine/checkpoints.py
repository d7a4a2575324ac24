"""Checkpoints that mmengine's runner and initializers load, through the allow-list of :mod:`mmlk.weights.read`.

mmengine by itself unpickles a file freely, code and all, as soon as the file holds a type that its list lacks.
"""
from typing import Any, Callable, List, Tuple

import numpy as np
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmlk.weights.fetch import find
from mmlk.weights.read import read


def _statistic(kind: type, name: str) -> Callable:
    """What the logs take getattr for."""
    methods = ('mean', 'max', 'min', 'current')
    if kind is not HistoryBuffer or name not in methods:
        raise ValueError(f'getattr of {kind!r:.60} and {name!r:.60}')
    return getattr(HistoryBuffer, name)


def _logs() -> List[Tuple[Callable, str]]:
    """What a runner's message hub is made of, with its names in files of numpy 1 and 2."""
    reconstruct, scalar = np.zeros(1).__reduce__()[0], np.float64(1).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in ('u1', 'u4', 'i4', 'i8', 'f4', 'f8', 'b1')}
    return [(HistoryBuffer, 'mmengine.logging.history_buffer.HistoryBuffer'), (_statistic, 'builtins.getattr'),
            (slice, 'builtins.slice'), (np.ndarray, 'numpy.ndarray'), (np.dtype, 'numpy.dtype'),
            *((dtype, f'{dtype.__module__}.{dtype.__qualname__}') for dtype in dtypes),
            *((reconstruct, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
            *((scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core'))]


def load(filename: str, map_location: Any = None) -> dict:
    """A checkpoint as mmengine's loaders give it, on the CPU; the runner moves what it takes.

    Raises:
        WeightsError: It cannot be had or read, or holds a type that is not allowed.
    """
    return read(find(filename), built=_logs())


def guard() -> None:
    """Have mmengine load files and URLs with :func:`load`, in this process."""
    for prefix in ('', 'http://', 'https://'):
        CheckpointLoader.register_scheme(prefix, load, force=True)
