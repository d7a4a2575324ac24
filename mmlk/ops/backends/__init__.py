"""The ordered table of backends; on equal cost the earlier one is taken."""
from typing import List

from .base import Backend, Problem
from .fft import FFT
from .native import Native
from .padded import Padded

__all__ = ['Backend', 'Problem', 'TABLE', 'backends', 'choose', 'get']

TABLE = (Native(), Padded(), FFT())


def backends() -> List[Backend]:
    """Every backend, in order of preference."""
    return list(TABLE)


def get(name: str, device, dtype) -> Backend:
    """The backend of that name.

    Raises:
        ValueError: No such backend, or it cannot run here; the message holds its reason.
    """
    for backend in TABLE:
        if backend.name == name:
            ok, reason = backend.can_run(device, dtype)
            if not ok:
                raise ValueError(f"depthwise backend '{name}' cannot run here: {reason}")
            return backend
    raise ValueError(f"no depthwise backend '{name}'; there are {', '.join(b.name for b in TABLE)}")


def choose(step: str, problem: Problem) -> Backend:
    """The backend with the least estimated cost for one pass of this problem."""
    able = [b for b in TABLE if b.can_run(problem.device, problem.dtype)[0]]
    return min(able, key=lambda b: b.cost(step, problem))
