"""The types other than tensors in the checkpoints of mmengine: its logs and the numpy arrays in them."""
import importlib.metadata
import re
from functools import lru_cache
from reprlib import repr as brief
from types import ModuleType
from typing import Any, Callable, List, Tuple

from mmlk._after_import import after_import

METHODS = ('current', 'max', 'mean', 'min')  # methods of HistoryBuffer that its pickled state refers to


def _release(distribution: str) -> Tuple[int, ...]:
    """Returns the version of an installed distribution as numbers; () if it is not installed."""
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in re.match(r'\d+(?:\.\d+)*', version)[0].split('.'))


@lru_cache(maxsize=None)
def _history() -> type:
    """Returns a subclass of mmengine's HistoryBuffer that checks its state. Imports mmengine."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    class History(HistoryBuffer):
        """Checks the state in a file, and then changes its class to HistoryBuffer."""

        def __new__(cls, *args: Any) -> 'History':
            history = super().__new__(cls)
            HistoryBuffer.__init__(history)
            return history

        def __init__(self, *args: Any):
            pass

        def __setstate__(self, state: Any) -> None:
            # The original method replaces methods of the class by those in the state. That is not done here.
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
    """Replaces mmengine's HistoryBuffer until a file has one, so that mmengine is only imported if needed."""

    def __new__(cls, *args: Any) -> Any:
        from torch import serialization
        serialization.add_safe_globals([(_history(), 'HistoryBuffer')])  # so far the list has this class under its name
        return _history()()


def _statistic(owner: Any, name: Any) -> Callable:
    """Replaces ``getattr``: returns only what the state of a HistoryBuffer needs, not any attribute of any object."""
    if owner not in (_History, _history()) or name not in METHODS:
        raise ValueError(f'a checkpoint asks for {brief(name)} of {brief(owner)}, which logs of mmengine do not hold')
    return getattr(_history(), name)


def mmengine_types() -> List[Tuple[Callable, str]]:
    """Returns pairs of a callable and the name by which a file refers to it, with the names of numpy 1 and 2.

    All callables check the data in the file. numpy's own would crash the interpreter if the data are not valid.
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
    """Adds these types to torch's list of safe globals, after torch has been imported.

    mmengine up to 0.10.7 needs this to read its own checkpoints, because torch 2.6 and later only read tensors by
    default. The onedl releases have their own list. Nothing is imported here.
    """
    after_import('torch', _allow)
