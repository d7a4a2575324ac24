"""The backends, in order of preference: if two have the same cost, the earlier one is used."""
from typing import List

from .base import STEPS, Backend, ConvProblem
from .channels_last import ChannelsLast
from .dft import DFT
from .fft import FFT
from .fft_pairs import FFTPairs
from .native import Native
from .padded import Padded
from .triton import Triton

__all__ = ['Backend', 'ConvProblem', 'STEPS', 'TABLE', 'get', 'list_backends']

TABLE = (Native(), Padded(), ChannelsLast(), DFT(), FFT(), FFTPairs(), Triton())


def list_backends() -> List[Backend]:
    """Returns all backends, in order of preference."""
    return list(TABLE)


def get(name: str, problem: ConvProblem) -> Backend:
    """Returns the backend with the given name.

    Raises:
        ValueError: There is no such backend, or it cannot run the problem; the message gives its reason.
    """
    for backend in TABLE:
        if backend.name == name:
            ok, reason = backend.can_run(problem)
            if not ok:
                raise ValueError(f"depthwise backend '{name}' cannot run here: {reason}")
            return backend
    raise ValueError(f"no depthwise backend '{name}'; there are {', '.join(b.name for b in TABLE)}")
