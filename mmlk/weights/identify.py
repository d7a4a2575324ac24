"""Finds the architecture to which a state dict belongs, for hints and for ``tools/weights.py inspect``.

Each published architecture is built on the meta device, and the names and shapes of its tensors are compared with those
of the file.
"""
import re
import sys
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .layouts import split_backbone

Shapes = Dict[str, Tuple[int, ...]]


class Form(NamedTuple):
    """A published architecture, in training form or merged form.

    Args:
        family: The class of the backbone.
        arch: A key of the family's ``ARCHS``.
        merged: Whether the form is the merged one.
    """
    family: type
    arch: str
    merged: bool = False


class Stages(NamedTuple):
    """The tensors of the first stages of a form.

    Args:
        count: Number of stages.
        known: Name and shape of each tensor.
        needed: The part of ``known`` that every file has, without optional tensors.
        plain: Whether the network has no branches to merge, so that both forms are equal.
    """
    count: int  # type: ignore[assignment]  # the name of a method of tuples
    known: Shapes
    needed: Shapes
    plain: bool


class _Uninitialized(TorchFunctionMode):
    """Skips the functions of ``torch.nn.init``, which take most of the time that a network on the meta device takes."""

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Optional[Dict[str, Any]] = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, '__module__', None) == 'torch.nn.init':
            return kwargs['tensor'] if 'tensor' in kwargs else args[0]
        return func(*args, **kwargs)


def _archs() -> Iterator[Form]:
    """Yields each architecture, in training form, of each registered backbone whose module has ``ARCHS``."""
    from mmlk.backbones import BaseBackbone
    from mmlk.registry import MODELS
    for family in MODELS.module_dict.values():
        if isinstance(family, type) and issubclass(family, BaseBackbone):
            yield from (Form(family, arch) for arch in getattr(sys.modules[family.__module__], 'ARCHS', ()))


@lru_cache(maxsize=None)
def _stages(form: Form, count: Optional[int] = None) -> Stages:
    """Returns the tensors of the first ``count`` stages, or of all stages if ``count`` is None."""
    some = {} if count is None else {'out_indices': tuple(range(count))}
    with torch.device('meta'), _Uninitialized():
        backbone = form.family(arch=form.arch, merged=form.merged, **some)
    known = {name: tuple(value.shape) for name, value in backbone.state_dict().items()}
    may_lack = ('*num_batches_tracked', *backbone.optional_weights)
    needed = {name: shape for name, shape in known.items() if not any(fnmatchcase(name, p) for p in may_lack)}
    return Stages(backbone.num_stages, known, needed, backbone.merged and not form.merged)


def kinds(names: Iterable[str]) -> Set[str]:
    """Returns the names with the numbers of stages and blocks replaced with ``#``."""
    return {re.sub(r'\.\d+(?=\.)', '.#', name) for name in names}


def _layers(names: Iterable[str]) -> Set[str]:
    """Returns the names of the modules that hold these tensors, with the numbers of stages and blocks replaced."""
    return {kind.rpartition('.')[0] for kind in kinds(names)} - {''}


def _fits(form: Form, file: Shapes) -> bool:
    """Returns whether the file contains the form or its first stages, and no other tensors of a backbone."""
    # A single stage is built quickly and excludes most architectures.
    if not _stages(form, 1).needed.items() <= file.items():
        return False
    whole = held = _stages(form)
    while not held.needed.items() <= file.items():
        held = _stages(form, held.count - 1)
    others = file.keys() - held.known.keys()
    # a layer that has more tensors is another layer: BatchNorm is a LayerNorm with statistics
    return not kinds(whole.known) & kinds(others) and not _layers(whole.known) & _layers(others)


def _fitting(file: Shapes) -> List[Form]:
    forms = []
    for training in _archs():
        fits = _fits(training, file)
        if fits:
            forms.append(training)
        # branches may begin after the first stage, as in some MobileNetV2s
        begins = _stages(training, 1).needed.items() <= file.items()
        if not _stages(training, None if begins else 1).plain:
            merged = training._replace(merged=True)
            forms += [merged] if _fits(merged, file) else []
    return forms


def _kin(file: Shapes) -> List[Form]:
    """Returns the forms whose names, compared without numbers and shapes, are all in the file.

    Of these, only the ones with the largest number of different names are returned.
    """
    file_kinds = kinds(file)
    kin: Dict[int, List[Form]] = {}
    for training in _archs():
        for form in (training, ) if _stages(training, 1).plain else (training, training._replace(merged=True)):
            if kinds(_stages(form, 1).needed) <= file_kinds and kinds(_stages(form).needed) <= file_kinds:
                kin.setdefault(len(kinds(_stages(form).needed)), []).append(form)
    return kin[max(kin)] if kin else []


def identify(tensors: Mapping[str, Tensor]) -> Optional[str]:
    """Returns the family, the architecture and the form of a state dict, such as 'RepLKNet-31B, training form'.

    A backbone without its last stages is identified too. If several architectures have the same tensors, all of them
    are named. The form is omitted for networks without branches to merge.

    Returns:
        The description, or None if the state dict does not belong to a known family.
    """
    file = {name: tuple(value.shape) for name, value in split_backbone(tensors)[0].items()}
    forms = _fitting(file)
    names = [f'{form.family.__name__}-{form.arch}' for form in forms]
    if not forms:
        forms = _kin(file)
        names = [f'{form.family.__name__}, incomplete or of no published arch' for form in forms]
    if not forms:
        return None
    told = {'' if _stages(form).plain else ', merged form' if form.merged else ', training form' for form in forms}
    return ' or '.join(dict.fromkeys(names)) + (told.pop() if len(told) == 1 else '')
