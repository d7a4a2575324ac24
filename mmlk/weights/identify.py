"""Which architecture a set of tensors belongs to, for hints and for ``tools/weights.py inspect``."""
import re
import sys
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Set, Tuple

import torch
from torch import Tensor

from .layouts import split_backbone

Shapes = Dict[str, Tuple[int, ...]]


class Form(NamedTuple):
    """A published arch of a family, as it is trained or merged."""
    family: type
    arch: str
    merged: bool = False


class Stages(NamedTuple):
    """The first ``count`` stages of a form.

    ``known`` has the shape of every tensor, ``needed`` of those that no file lacks; ``plain`` is whether there are no
    branches to merge, so that both forms are one.
    """
    count: int  # type: ignore[assignment]  # the name of a method of tuples
    known: Shapes
    needed: Shapes
    plain: bool


def _archs() -> Iterator[Form]:
    """Yield every arch of every registered backbone whose module has ``ARCHS``, in training form."""
    from mmlk.backbones import BaseBackbone
    from mmlk.registry import MODELS
    for family in MODELS.module_dict.values():
        if isinstance(family, type) and issubclass(family, BaseBackbone):
            yield from (Form(family, arch) for arch in getattr(sys.modules[family.__module__], 'ARCHS', ()))


@lru_cache(maxsize=None)
def _stages(form: Form, count: Optional[int] = None) -> Stages:
    """The first ``count`` stages, or all."""
    some = {} if count is None else {'out_indices': tuple(range(count))}
    with torch.device('meta'):
        backbone = form.family(arch=form.arch, merged=form.merged, **some)
    known = {name: tuple(value.shape) for name, value in backbone.state_dict().items()}
    may_lack = ('*num_batches_tracked', *backbone.optional_weights)
    needed = {name: shape for name, shape in known.items() if not any(fnmatchcase(name, p) for p in may_lack)}
    return Stages(backbone.num_stages, known, needed, backbone.merged and not form.merged)


def kinds(names: Iterable[str]) -> Set[str]:
    """The names without the numbers of stages and blocks."""
    return {re.sub(r'\.\d+(?=\.)', '.#', name) for name in names}


def _fits(form: Form, file: Shapes) -> bool:
    """Whether the file holds the arch or its first stages, and no more of a backbone than that."""
    # one stage is quickly built and rules most archs out
    if not _stages(form, 1).needed.items() <= file.items():
        return False
    whole = held = _stages(form)
    while not held.needed.items() <= file.items():
        held = _stages(form, held.count - 1)
    return not kinds(whole.known) & kinds(file.keys() - held.known.keys())


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
    """Forms whose names, without numbers, are all in the file, whatever the shapes; those that match most names."""
    file_kinds = kinds(file)
    kin: Dict[int, List[Form]] = {}
    for training in _archs():
        for form in (training, ) if _stages(training, 1).plain else (training, training._replace(merged=True)):
            if kinds(_stages(form, 1).needed) <= file_kinds and kinds(_stages(form).needed) <= file_kinds:
                kin.setdefault(len(kinds(_stages(form).needed)), []).append(form)
    return kin[max(kin)] if kin else []


def identify(tensors: Mapping[str, Tensor]) -> Optional[str]:
    """Tell which arch of which family a state dict is of: 'RepLKNet-31B, training form'; None if it is of none.

    A backbone without its last stages is still of its arch. Of archs that have the same tensors all are named. The
    form is told where there are two.
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
