"""The types that mmengine's checkpoints hold beside tensors: its logs, and what numpy makes them of."""
import importlib.metadata
import re
from functools import lru_cache
from reprlib import repr as brief
from types import ModuleType
from typing import Any, Callable, List, Tuple

from mmlk._after_import import after_import

METHODS = ('current', 'max', 'mean', 'min')  # of HistoryBuffer, which names them in its state


def _release(distribution: str) -> Tuple[int, ...]:
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in re.match(r'\d+(?:\.\d+)*', version)[0].split('.'))


@lru_cache(maxsize=None)
def _history() -> type:
    import numpy as np
    from mmengine.logging import HistoryBuffer

    class History(HistoryBuffer):
        """Becomes a HistoryBuffer by the state that a file has for it, once that is checked."""

        def __new__(cls, *args: Any) -> 'History':
            history = super().__new__(cls)
            HistoryBuffer.__init__(history)
            return history

        def __init__(self, *args: Any):
            pass

        def __setstate__(self, state: Any) -> None:
            # The class shares its methods among all logs, and takes them from the state: here, never.
            logs, counts, most = map(state.get if isinstance(state, dict) else lambda key: None,
                                     ('_log_history', '_count_history', 'max_length'))
            if not isinstance(logs, np.ndarray) or not isinstance(counts, np.ndarray) or logs.ndim != 1 \
                    or logs.shape != counts.shape or type(most) is not int or most < 1:
                raise ValueError(f"a log of mmengine's with the state {brief(state)}")
            self._log_history, self._count_history, self.max_length = np.array(logs), np.array(counts), most
            self.__class__ = HistoryBuffer

        def __reduce__(self) -> tuple:
            return HistoryBuffer, ()

    return History


class _History:
    """Stands for mmengine's HistoryBuffer until a file holds one, so that mmengine is not imported before."""

    def __new__(cls, *args: Any) -> Any:
        from torch import serialization
        serialization.add_safe_globals([(_history(), 'HistoryBuffer')])  # its own name is this class's on the list
        return _history()()


def _statistic(owner: Any, name: Any) -> Callable:
    """``getattr`` as far as a HistoryBuffer's state needs it; the real one would hand a file any attribute."""
    if owner not in (_History, _history()) or name not in METHODS:
        raise ValueError(f'a checkpoint asks for {brief(name)} of {brief(owner)}, which logs of mmengine do not hold')
    return getattr(_history(), name)


def mmengine_types() -> List[Tuple[Callable, str]]:
    """(callable, the name that a file has for it), the names of numpy 1 and 2.

    All are built from what the file says only once that is checked: numpy's own end the interpreter where a file says
    what cannot be.
    """
    from mmlk import _arrays
    return [(_History, 'mmengine.logging.history_buffer.HistoryBuffer'), (_statistic, 'builtins.getattr'),
            (slice, 'builtins.slice'), (_arrays.no_bytes, 'builtins.bytes'), (_arrays.Array, 'numpy.ndarray'),
            (_arrays.Dtype, 'numpy.dtype'),
            *((_arrays.array, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
            *((_arrays.scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core'))]


def _allow(torch: ModuleType) -> None:
    if () < _release('mmengine') <= (0, 10, 7) and _release('torch') >= (2, 6):
        torch.serialization.add_safe_globals(mmengine_types())


def allow_mmengine_types() -> None:
    """Put those types on torch's allow-list, once torch is imported.

    mmengine up to 0.10.7 needs it to read its own checkpoints, because torch 2.6 and later read only tensors by
    default. The onedl releases have a list of their own. Nothing is imported here.
    """
    after_import('torch', _allow)
