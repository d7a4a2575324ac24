"""The types that mmengine's checkpoints hold beside tensors: its logs, and what numpy makes them of."""
import importlib.metadata
import re
from typing import Any, Callable, List, Tuple

METHODS = ('current', 'max', 'mean', 'min')  # of HistoryBuffer, which names them in its state


def _release(distribution: str) -> Tuple[int, ...]:
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in re.match(r'\d+(?:\.\d+)*', version)[0].split('.'))


def _history() -> type:
    from mmengine.logging import HistoryBuffer
    return HistoryBuffer


class _History:
    """Stands for mmengine's HistoryBuffer until a file holds one, so that mmengine is not imported before."""

    def __new__(cls) -> Any:
        from torch import serialization
        serialization.add_safe_globals([(_history(), 'HistoryBuffer')])  # its own name is this class's on the list
        return _history().__new__(_history())


def _statistic(owner: Any, name: str) -> Callable:
    """``getattr`` as far as a HistoryBuffer's state needs it; the real one would hand a file any attribute."""
    if owner not in (_History, _history()) or name not in METHODS:
        raise ValueError(f'a checkpoint asks for {name!r:.60} of {owner!r:.60}, which the logs of mmengine do not hold')
    return getattr(_history(), name)


def mmengine_types() -> List[Tuple[Callable, str]]:
    """(callable, the name that a file has for it), the names of numpy 1 and 2."""
    import numpy as np
    reconstruct, scalar = np.zeros(1).__reduce__()[0], np.float64(1).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in np.typecodes['AllInteger'] + np.typecodes['Float'] + '?'}
    return [(_History, 'mmengine.logging.history_buffer.HistoryBuffer'), (_statistic, 'builtins.getattr'),
            (slice, 'builtins.slice'), (np.ndarray, 'numpy.ndarray'), (np.dtype, 'numpy.dtype'),
            *((dtype, f'{dtype.__module__}.{dtype.__qualname__}') for dtype in dtypes),
            *((reconstruct, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
            *((scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core'))]


def allow_mmengine_types() -> None:
    """Put those types on torch's allow-list where mmengine, up to 0.10.7, would not read its own checkpoints: torch 2.6
    and later read tensors alone by default. The onedl releases have a list of their own.
    """
    if () < _release('mmengine') <= (0, 10, 7) and _release('torch') >= (2, 6):
        from torch import serialization
        serialization.add_safe_globals(mmengine_types())
