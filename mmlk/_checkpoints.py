"""What lets mmengine up to 0.10.7 read its own checkpoints under torch 2.6 and later."""
import importlib.metadata
import re
from typing import Any

METHODS = ('current', 'max', 'mean', 'min')  # of HistoryBuffer, which names them in its state


def _release(distribution: str) -> tuple:
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
        serialization.add_safe_globals([_history()])
        return _history().__new__(_history())


def _method(owner: Any, name: str) -> Any:
    """``getattr`` as far as a HistoryBuffer's state needs it; the real one would hand a file any attribute."""
    if owner not in (_History, _history()) or name not in METHODS:
        raise ValueError(f'a checkpoint asks for {name!r} of {owner!r}, which mmengine\'s own do not hold')
    return getattr(_history(), name)


def allow_mmengine_types() -> None:
    """Put the types that mmengine's logs are made of on torch's allow-list; nothing where they are not needed.

    mmengine reads with torch's default, since 2.6 ``weights_only=True``, which knows tensors alone; the onedl releases
    see to it themselves.
    """
    if not () < _release('mmengine') <= (0, 10, 7) or _release('torch') < (2, 6):
        return
    import numpy as np
    from torch import serialization
    multiarray = getattr(np, '_core', None) or np.core
    serialization.add_safe_globals([
        (_History, 'mmengine.logging.history_buffer.HistoryBuffer'), (_method, 'builtins.getattr'),
        np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in np.typecodes['AllInteger'] + np.typecodes['Float']},
        *((getattr(multiarray.multiarray, name), f'numpy.{core}.multiarray.{name}')
          for name in ('_reconstruct', 'scalar') for core in ('core', '_core'))])
