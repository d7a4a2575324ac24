"""numpy's arrays and numbers, built from what a pickle says of them once that is checked.

numpy believes a pickle: a dtype takes its memory layout from there, an array its size, and what does not fit together
ends the interpreter.
"""
import math
from reprlib import repr as brief  # bounded: nested lists of a pickle may stand for more than any memory holds
from typing import Any

import numpy as np

DTYPES = {np.dtype(code).str[1:]: np.dtype(code) for code in np.typecodes['AllInteger'] + np.typecodes['Float'] + '?'}


class Dtype:
    """Stands for ``numpy.dtype``: integers, floats and booleans, in either order of bytes.

    Raises:
        ValueError: Another type.
    """

    def __init__(self, code: Any = None, *flags: Any):
        if not isinstance(code, str) or code not in DTYPES:
            raise ValueError(f'numbers of the type {brief(code)}, where plain ones of numpy are expected')
        self.value = DTYPES[code]

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 8 or state[0] != 3 or state[1] not in ('<', '>', '|', '=') \
                or state[2:] != (None, None, None, -1, -1, 0):
            raise ValueError(f'a numpy type with the layout {brief(state)}, which plain numbers do not have')
        self.value = self.value.newbyteorder(state[1])

    def __reduce__(self) -> tuple:
        return self.value.__reduce__()


class Array(np.ndarray):
    """Stands for ``numpy.ndarray``, is one, and is pickled as one."""

    def __new__(cls, *args: Any) -> 'Array':
        return super().__new__(cls, 0, np.int8)

    def __setstate__(self, state: Any) -> None:
        """Take shape, type and values.

        Raises:
            ValueError: They are none, or do not fit together.
        """
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError(f'a numpy array of {brief(state)}')
        shape, dtype, order, data = state[1:]
        if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape) \
                or len(shape) > 32 or not isinstance(dtype, Dtype) or not isinstance(data, bytes) \
                or math.prod(shape) * dtype.value.itemsize != len(data):
            raise ValueError(f'a numpy array whose shape, {brief(shape)}, type and values do not fit together')
        super().__setstate__((1, shape, dtype.value, bool(order), data))

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def array(*args: Any) -> Array:
    """Stands for ``numpy._core.multiarray._reconstruct``; the state comes after it."""
    return Array()


def no_bytes() -> bytes:
    """Stands for ``bytes``, which a pickle names for the values of an empty array, and could name any number of."""
    return b''


def scalar(dtype: Any, data: Any) -> np.generic:
    """Stands for ``numpy._core.multiarray.scalar``.

    Raises:
        ValueError: The bytes are not one number of that type.
    """
    if not isinstance(dtype, Dtype) or not isinstance(data, bytes) or len(data) != dtype.value.itemsize:
        raise ValueError('a numpy number whose type and bytes do not fit together')
    return np.frombuffer(data, dtype.value)[0]
