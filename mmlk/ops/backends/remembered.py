"""Spectra of kernels that a network in inference uses again and again, so that each is taken once."""
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
_keys: Dict[int, Set[_Key]] = {}  # of each weight's entries


class _Entry(NamedTuple):
    """What is known of a weight with a problem; spectra are held where it has come again unchanged."""

    owner: 'weakref.ref[Tensor]'
    version: Optional[int]
    marks: Optional[Tensor] = None
    spectra: Optional[List[Tensor]] = None


@lru_cache(maxsize=256)
def _directions(taps: int, dtype: torch.dtype) -> Tensor:
    """(2, taps), each of magnitude 1 to 2 and random sign, so that no tap goes unseen."""
    generator = torch.Generator('cpu').manual_seed(0)
    values = torch.rand(2, taps, generator=generator, dtype=torch.float64, device='cpu') * 2 - 1
    return (values + values.sign()).to(dtype)


def _marks(weight: Tensor) -> Tensor:
    """Two random projections (2, C) of each channel's taps."""
    taps = weight.flatten(1).to(compute_dtype(weight.dtype))
    return torch.mm(_directions(taps.shape[1], taps.dtype), taps.t())


def _put(key: _Key, entry: _Entry) -> None:
    with _lock:
        _spectra[key] = entry
        _spectra.move_to_end(key)
        _keys.setdefault(key[-1], set()).add(key)
        held = sum(map(_size, _spectra.values())) if entry.spectra else 0
        while held > _MAX_BYTES or len(_spectra) > _MAX_ENTRIES:
            held -= _size(_pop(next(iter(_spectra))))


def _pop(key: _Key) -> _Entry:
    keys = _keys[key[-1]]
    keys.discard(key)
    if not keys:
        del _keys[key[-1]]
    return _spectra.pop(key)


def remembered(backend: str, problem: ConvProblem, weight: Tensor, make: Callable[[], List[Tensor]],
               owner: Optional[Tensor] = None) -> List[Tensor]:
    """``make()``, or what it gave when the same problem last came with the same weight.

    ``owner`` is the parameter of which autocast has made ``weight``: the same tensor each time, where the cast is a new
    one. A parameter may be changed in ways that leave no trace, through ``.data`` say, so its version does not tell
    all, and to compare all its values takes a tenth of the convolution's time. Two random projections of each channel
    are compared as well: what moves neither of them beyond rounding moves the output no further. Spectra are held from
    the second meeting with an unchanged parameter on, so neither images of ever new sizes nor a weight that is being
    trained hold any (:func:`learning`); and on CPUs only, for a GPU would have to wait for the comparison.
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
    """Let go of a weight's spectra, for its gradient is about to be taken."""
    if id(owner) in _keys:
        with _lock:
            for key in list(_keys.get(id(owner), ())):
                _pop(key)


def forget(problem: Optional[ConvProblem] = None, keep: Optional[str] = None) -> None:
    """Let go of every remembered spectrum, or of a problem's by other backends than ``keep``."""
    with _lock:
        for key in list(_spectra):
            if problem is None or key[1] == problem and key[0] != keep:
                _pop(key)


def _size(entry: _Entry) -> int:
    tensors = (*(() if entry.marks is None else (entry.marks, )), *(entry.spectra or ()))
    return sum(t.numel() * t.element_size() for t in tensors)
