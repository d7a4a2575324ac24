"""A cache of the spectra of kernels, for inference, where the weights stay the same from image to image.

What is cached: for each backend, problem and weight the spectra that the backend computed from the weight. They are
stored when the same problem comes with an unchanged weight for the second time. So nothing is stored for images whose
sizes keep changing, nor for weights that are being trained (:func:`learning`).

How a changed weight is detected: in two steps. PyTorch counts in-place changes of a tensor in ``Tensor._version``; an
entry with another version is not used. Changes through ``.data`` are not counted, though. Comparing all values would
take a tenth of the time of the convolution, so two random projections of each channel's taps are compared instead, as
in Freivalds' algorithm for checking products of matrices (Motwani and Raghavan, Randomized Algorithms, section 7.1). If
both projections are unchanged, the output is unchanged to rounding.

Memory: at most 512 MiB of spectra and 1024 entries. The least recently used are removed. The cache is used on CPUs
only: a GPU would have to be synchronized to compare the projections.
"""
import threading
import weakref
from collections import OrderedDict
from functools import lru_cache
from typing import Callable, Dict, List, NamedTuple, Optional, Set, Tuple

import torch
from torch import Tensor

from .base import ConvProblem, compute_dtype

# The least recently used entries are removed when one of these is exceeded.
_MAX_BYTES = 512 << 20  # of all spectra together, 512 MiB
_MAX_ENTRIES = 1024

_Key = Tuple[str, ConvProblem, int]  # backend, problem, id of the weight

_lock = threading.Lock()
_spectra: 'OrderedDict[_Key, _Entry]' = OrderedDict()
_keys: Dict[int, Set[_Key]] = {}  # the keys of all entries of a weight, by its id


class _Entry(NamedTuple):
    """The cache entry of one backend, problem and weight.

    Attributes:
        owner: The weight. A weak reference, so that the cache does not keep it alive.
        version: Its version counter; None for an inference tensor, which has none.
        marks: The projections of its taps, (2, C); None until the second use.
        spectra: The spectra; None until the weight has come again unchanged.
    """

    owner: 'weakref.ref[Tensor]'
    version: Optional[int]
    marks: Optional[Tensor] = None
    spectra: Optional[List[Tensor]] = None


@lru_cache(maxsize=256)
def _directions(taps: int, dtype: torch.dtype) -> Tensor:
    """Returns the projections' coefficients, (2, taps). Each has a magnitude of 1 to 2, so that every tap counts."""
    generator = torch.Generator('cpu').manual_seed(0)
    values = torch.rand(2, taps, generator=generator, dtype=torch.float64, device='cpu') * 2 - 1
    return (values + values.sign()).to(dtype)


def _marks(weight: Tensor) -> Tensor:
    """Returns two fixed random projections of each channel's taps, (2, C)."""
    taps = weight.flatten(1).to(compute_dtype(weight.dtype))
    return torch.mm(_directions(taps.shape[1], taps.dtype), taps.t())


def _put(key: _Key, entry: _Entry) -> None:
    """Stores an entry as the most recently used one, and removes the least recently used ones beyond the limits."""
    with _lock:
        _spectra[key] = entry
        _spectra.move_to_end(key)
        _keys.setdefault(key[-1], set()).add(key)
        held = sum(map(_size, _spectra.values())) if entry.spectra else 0
        while held > _MAX_BYTES or len(_spectra) > _MAX_ENTRIES:
            held -= _size(_pop(next(iter(_spectra))))


def _pop(key: _Key) -> _Entry:
    """Removes an entry and returns it."""
    keys = _keys[key[-1]]
    keys.discard(key)
    if not keys:
        del _keys[key[-1]]
    return _spectra.pop(key)


def remembered(backend: str, problem: ConvProblem, weight: Tensor, make: Callable[[], List[Tensor]],
               owner: Optional[Tensor] = None) -> List[Tensor]:
    """Returns the cached spectra of a weight, or those that ``make`` computes.

    Args:
        backend: Name of the backend.
        problem: The problem.
        weight: (C, 1, kh, kw).
        make: A function that computes the spectra.
        owner: The parameter of which autocast has made ``weight``. Autocast makes a new tensor each time, so the
            parameter identifies the weight. None if ``weight`` is the parameter itself.
    """
    if problem.device.type != 'cpu':
        return make()
    owner = weight if owner is None else owner
    key = backend, problem, id(owner)
    version = None if owner.is_inference() else owner._version
    with _lock:
        entry = _spectra.get(key)
        if entry is not None:
            _spectra.move_to_end(key)
    if entry is None or entry.owner() is not owner or entry.version != version:
        _put(key, _Entry(weakref.ref(owner), version))
        return make()
    marks = _marks(owner)
    if entry.marks is not None and not torch.equal(entry.marks, marks):
        _put(key, entry._replace(marks=marks, spectra=None))
        return make()
    if entry.spectra is not None:
        return entry.spectra
    spectra = make()
    _put(key, entry._replace(marks=marks, spectra=spectra))
    return spectra


def learning(owner: Tensor) -> None:
    """Removes all entries of a weight. Called when a gradient of it is requested, so that it will probably change."""
    if id(owner) in _keys:
        with _lock:
            for key in list(_keys.get(id(owner), ())):
                _pop(key)


def forget(problem: Optional[ConvProblem] = None, keep: Optional[str] = None) -> None:
    """Removes all entries; with ``problem``, only the entries of that problem by backends other than ``keep``."""
    with _lock:
        for key in list(_spectra):
            if problem is None or key[1] == problem and key[0] != keep:
                _pop(key)


def _size(entry: _Entry) -> int:
    """Returns the bytes of an entry's tensors."""
    tensors = (*(() if entry.marks is None else (entry.marks, )), *(entry.spectra or ()))
    return sum(t.numel() * t.element_size() for t in tensors)
