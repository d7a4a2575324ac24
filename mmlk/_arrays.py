"""Builds numpy's arrays and scalars from the data in a pickle file, after checking the data.

numpy itself does not check: a dtype takes its memory layout from the file, and an array its size. A file in which these
do not match can crash the interpreter.
"""
import math
from reprlib import repr as brief  # limited in length: nested lists of a pickle may be larger than the memory
from typing import Any

import numpy as np

DTYPES = {np.dtype(code).str[1:]: np.dtype(code) for code in np.typecodes['AllInteger'] + np.typecodes['Float'] + '?'}


class Dtype:
    """Replaces ``numpy.dtype`` when a pickle is read: integers, floats and booleans, in either byte order.

    Raises:
        ValueError: It is another type.
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
    """Replaces ``numpy.ndarray`` when a pickle is read. It is a subclass, and is pickled as ``numpy.ndarray``."""

    def __new__(cls, *args: Any) -> 'Array':
        return super().__new__(cls, 0, np.int8)

    def __setstate__(self, state: Any) -> None:
        """Sets shape, dtype and values.

        Raises:
            ValueError: They are not valid, or do not match.
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
    """Replaces ``numpy._core.multiarray._reconstruct``; ``__setstate__`` is called afterwards."""
    return Array()


def no_bytes() -> bytes:
    """Replaces ``bytes``, which a pickle calls for the values of an empty array, and could call with any size."""
    return b''


def scalar(dtype: Any, data: Any) -> np.generic:
    """Replaces ``numpy._core.multiarray.scalar``.

    Raises:
        ValueError: The bytes are not a single number of this dtype.
    """
    if not isinstance(dtype, Dtype) or not isinstance(data, bytes) or len(data) != dtype.value.itemsize:
        raise ValueError('a numpy number whose type and bytes do not fit together')
    return np.frombuffer(data, dtype.value)[0]
