"""Where the tensors lie in what a file holds, and how its keys answer to a module's."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Collection, Dict, List, Mapping, Tuple, Union

import torch
from torch import Tensor

from .dialects import DIALECTS
from .errors import WeightsError

# In order of preference. `state_dict`: mmseg, mmdet, mmpretrain, timm, Lightning. `model`: the official
# ConvNeXt and RepLKNet training scripts, Swin, DeiT; those scripts fine-tune from `model` (or `module`) even
# where the average lies beside it, hence the order. `state_dict_ema` is timm's average.
WRAPPERS = ('state_dict', 'model', 'module', 'model_ema', 'state_dict_ema')

BACKBONE = 'backbone.'
_AVERAGED = 'n_averaged'  # a counter that torch's AveragedModel puts beside the keys of `module.`


@dataclass
class WeightsLayout:
    """The tensors of a file by their names, and a description of where they were in the file.

    ``aside`` names what belongs to another part of the model than the one that is asked for.
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
    """Map names without the prefixes of ``torch.compile`` and of data-parallel wrappers to the given keys."""
    names = {key: key.replace('_orig_mod.', '') for key in keys}
    counted = [name for name in names.values() if name != _AVERAGED]
    if counted and all(name.startswith('module.') for name in counted):
        names = {key: name if name == _AVERAGED else name[len('module.'):] for key, name in names.items()}
    return {name: key for key, name in names.items()}


def find_tensors(payload: Any, path: Union[str, Path]) -> WeightsLayout:
    """Find the state dict in the contents of a file.

    Raises:
        WeightsError: There is none; or its names are not text, or two of them are one; or a tensor is larger than the
            file, being one number repeated.
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
    """Whether the names are those of a detector, segmentor or classifier that has a backbone in it."""
    return any(name.startswith(BACKBONE) for name in names)


def split_backbone(tensors: Mapping[str, Tensor]) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
    """The backbone's part of a state dict, without ``backbone.``, and the rest; of a bare backbone there is no rest."""
    if not is_whole(tensors):
        return dict(tensors), {}
    inside = {name[len(BACKBONE):]: value for name, value in tensors.items() if name.startswith(BACKBONE)}
    return inside, {name: value for name, value in tensors.items() if not name.startswith(BACKBONE)}


def fit(layout: WeightsLayout, names: Collection[str] = ()) -> WeightsLayout:
    """Give the tensors of a file the names that a module uses.

    A whole model takes a whole file with all that is in it. A backbone takes what lies under ``backbone.`` and nothing
    else, so that a key of a head can never pass for one of its own. Names of another toolbox are translated, unless
    the module has them itself.
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
        steps.append(f'{dialect.name}: {len(changed)} names translated' +
                     (f', such as {changed[0][0]} to {changed[0][1]}' if changed else '') +
                     (f', and {reshaped} tensors freed of dimensions of 1' if reshaped else ''))
    if is_whole(names):
        return WeightsLayout({**{BACKBONE + name: value for name, value in inside.items()}, **aside}, steps)
    return WeightsLayout(inside, steps, list(aside))
