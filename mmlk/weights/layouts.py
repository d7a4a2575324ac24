"""Finds the state dict in the contents of a file, and maps its names to those of a module."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Collection, Dict, List, Mapping, Optional, Tuple, Union

import torch
from torch import Tensor

from .dialects import DIALECTS
from .errors import WeightsError

# Keys that contain a state dict, in order of preference. `state_dict`: mmseg, mmdet, mmpretrain, timm, Lightning.
# `model`: the official training scripts of ConvNeXt, RepLKNet, Swin and DeiT. These scripts fine-tune from `model` (or
# `module`) even if the file also has averaged weights, which is why those come later. `state_dict_ema`: averaged
# weights of timm.
WRAPPERS = ('state_dict', 'model', 'module', 'model_ema', 'state_dict_ema')

BACKBONE = 'backbone.'
_AVERAGED = 'n_averaged'  # a counter of torch's AveragedModel, whose other keys begin with `module.`


@dataclass
class WeightsLayout:
    """The tensors of a file, and a description of how they were found.

    Attributes:
        tensors: The tensors by name.
        steps: What was done to find and rename them, for reports.
        aside: Names of tensors that belong to another part of the model than the one to load.
    """
    tensors: Dict[str, Tensor]
    steps: List[str] = field(default_factory=list)
    aside: List[str] = field(default_factory=list)

    @property
    def format(self) -> str:
        return '; '.join(self.steps)


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def plain_names(keys: Collection[str]) -> Dict[str, str]:
    """Returns the given keys by their names without the prefixes of ``torch.compile`` and data parallelism."""
    names = {key: key.replace('_orig_mod.', '') for key in keys}
    counted = [name for name in names.values() if name != _AVERAGED]
    if counted and all(name.startswith('module.') for name in counted):
        names = {key: name if name == _AVERAGED else name[len('module.'):] for key, name in names.items()}
    return {name: key for key, name in names.items()}


def find_tensors(payload: Any, path: Union[str, Path]) -> WeightsLayout:
    """Finds the state dict in the contents of a file.

    Args:
        payload: The contents, as :func:`mmlk.weights.read.read_weights` returns them.
        path: The file, for messages and for its size.

    Returns:
        The tensors, with the prefixes of wrappers removed from their names.

    Raises:
        WeightsError: There is no state dict; a name is not printable, or two names are equal without their prefixes; or
            a tensor is nested, or has more elements than the file has bytes (a single number, expanded).
    """
    if not isinstance(payload, Mapping):
        raise WeightsError(f'{path} holds a {type(payload).__name__}, not tensors by name. A whole pickled '
                           'model is not read; save its state_dict()')
    found = [key for key in WRAPPERS if _is_state_dict(payload.get(key))]
    if found:
        others = sorted(str(key) for key in payload if key != found[0])
        state, step = payload[found[0]], f"'{found[0]}'"
        if others:
            step += f" beside {', '.join(others[:6])}{', ...' if len(others) > 6 else ''}"
    elif _is_state_dict(payload):
        state, step = payload, 'bare state dict'
    else:
        keys = ', '.join(map(str, list(payload)[:8])) or 'none'
        raise WeightsError(f'{path} holds no tensors by name; its keys are {keys}, and weights are looked '
                           f'for at the top or under {", ".join(WRAPPERS)}')
    tensors = {key: value for key, value in state.items()
               if isinstance(key, str) and isinstance(value, Tensor)}
    names = plain_names(tensors)
    if len(names) < len(tensors):
        twice = next(key for key in tensors if key not in names.values())
        raise WeightsError(f'{path} holds {twice} twice, if wrappers such as module. are left out of names')
    strange = [name for name in tensors if not name.isprintable()]
    if strange:
        raise WeightsError(f'{path} names a tensor {strange[0]!r:.60}')
    size = Path(path).stat().st_size
    for name, value in tensors.items():
        if value.is_nested:
            raise WeightsError(f'{path}: {name} is a nested tensor, not a plain dense one')
        if value.layout == torch.strided and not value.is_meta and value.numel() > size:
            raise WeightsError(f'{path} has {size:,} bytes and a tensor {name} of {value.numel():,} numbers; save it '
                               'with .contiguous(), if it is meant')
    steps = [step]
    if any(name != key for name, key in names.items()):
        steps.append('names freed of module. and _orig_mod.')
    return WeightsLayout({name: tensors[key] for name, key in names.items()}, steps)


def is_whole(names: Collection[str]) -> bool:
    """Returns whether the names are those of a whole detector, segmentor or classifier, not of a bare backbone."""
    return any(name.startswith(BACKBONE) for name in names)


def split_backbone(tensors: Mapping[str, Tensor]) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
    """Splits a state dict into the part of the backbone, without the prefix ``backbone.``, and the other tensors.

    For a bare backbone the second dict is empty.
    """
    if not is_whole(tensors):
        return dict(tensors), {}
    inside = {name[len(BACKBONE):]: value for name, value in tensors.items() if name.startswith(BACKBONE)}
    return inside, {name: value for name, value in tensors.items() if not name.startswith(BACKBONE)}


def official_classifier(layout: WeightsLayout, path: Union[str, Path]) -> WeightsLayout:
    """Renames the tensors of a classifier of :mod:`mmlk.classification` to the names in the official files.

    Args:
        layout: The tensors of a file.
        path: The file, for messages.

    Returns:
        A new layout. ``layout`` is not changed.

    Raises:
        WeightsError: The file is not such a classifier.
    """
    inside, beside = split_backbone(layout.tensors)
    linear = 'linear.' if any(name.startswith('stage0.') for name in inside) else 'head.'
    names = {'neck.norm.': 'norm.', 'head.fc.': linear}
    renamed = {official + name[len(ours):]: value for name, value in beside.items()
               for ours, official in names.items() if name.startswith(ours)}
    if len(renamed) < len(beside) or f'{linear}weight' not in renamed:
        raise WeightsError(f'{path} is not a classifier with a backbone, a norm neck.norm and a linear layer head.fc, '
                           'as configs/pretrain has them')
    return WeightsLayout({**inside, **renamed}, [*layout.steps, 'names of the official classifier'])


def fit(layout: WeightsLayout, names: Collection[str] = (),
        translate: Optional[Callable[[Dict[str, Tensor]], Optional[Dict[str, Tensor]]]] = None) -> WeightsLayout:
    """Renames the tensors of a file to the names that a module uses.

    For a whole model, all tensors of the file are kept. For a backbone, only those under ``backbone.`` are kept, so
    that a tensor of a head is never loaded into the backbone. Names of another toolbox are translated, unless the
    module uses these names itself.

    Args:
        layout: The tensors of the file.
        names: The names in the module's state dict. Empty for any backbone.
        translate: A function of the backbone that translates tensors of code that it knows itself, and returns None for
            all others.

    Returns:
        A new layout. ``layout`` is not changed.
    """
    if is_whole(names) and not is_whole(layout.tensors):
        return layout
    inside, aside = split_backbone(layout.tensors)
    steps = list(layout.steps)
    if not is_whole(names) and is_whole(layout.tensors):
        steps.append("keys under 'backbone.'")
    spoken = {name[len(BACKBONE):] if name.startswith(BACKBONE) else name for name in names}
    dialect = next((d for d in DIALECTS if d.marks({**inside, **aside}) and not d.marks(spoken)), None)
    if dialect:
        before, inside = inside, dialect.translate(inside)
        changed = [pair for pair in zip(before, inside) if pair[0] != pair[1]]
        reshaped = sum(x.shape != y.shape for x, y in zip(before.values(), inside.values()))
        if changed or reshaped:  # a classifier of mmlk.classification has a head of mmpretrain and our own names
            steps.append(f'{dialect.name}: {len(changed)} names translated' +
                         (f', such as {changed[0][0]} to {changed[0][1]}' if changed else '') +
                         (f', and {reshaped} tensors freed of dimensions of 1' if reshaped else ''))
    translated = translate(inside) if translate else None
    if translated is not None:
        made = [name for name in translated if name not in inside]
        inside = translated
        steps.append(f'official names: {len(made)} translated, such as to {made[0]}')
    if is_whole(names):
        return WeightsLayout({**{BACKBONE + name: value for name, value in inside.items()}, **aside}, steps)
    return WeightsLayout(inside, steps, list(aside))
