"""Where the tensors lie in what a file holds, and how its keys answer to a module's."""
from dataclasses import dataclass, field
from typing import Any, Collection, Dict, List, Mapping

from torch import Tensor

from .errors import WeightsError

# In order of preference. `state_dict`: mmseg, mmdet, mmpretrain, timm, Lightning. `model`: the official
# ConvNeXt and RepLKNet training scripts, Swin, DeiT; those scripts fine-tune from `model` (or `module`) even
# where the average lies beside it, hence the order. `state_dict_ema` is timm's average.
WRAPPERS = ('state_dict', 'model', 'module', 'model_ema', 'state_dict_ema')

_BACKBONE = 'backbone.'
_AVERAGED = 'n_averaged'  # a counter that torch's AveragedModel puts beside the keys of `module.`


@dataclass
class Layout:
    """The tensors of a file by plain name, and in words how they were found.

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
    """{plain name: key}, without what ``torch.compile`` and data-parallel wrappers put into names."""
    names = {key: key.replace('_orig_mod.', '') for key in keys}
    counted = [name for name in names.values() if name != _AVERAGED]
    if counted and all(name.startswith('module.') for name in counted):
        names = {key: name if name == _AVERAGED else name[len('module.'):] for key, name in names.items()}
    return {name: key for key, name in names.items()}


def find_tensors(payload: Any, path: object) -> Layout:
    """The state dict in what a file holds.

    Raises:
        WeightsError: There is none.
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
    steps = [step]
    if any(name != key for name, key in names.items()):
        steps.append('names freed of module. and _orig_mod.')
    return Layout({name: tensors[key] for name, key in names.items()}, steps)


def is_whole(names: Collection[str]) -> bool:
    """Whether the names are those of a detector, segmentor or classifier that has a backbone in it."""
    return any(name.startswith(_BACKBONE) for name in names)


def fit(layout: Layout, names: Collection[str]) -> Layout:
    """The layout as a module with parameters ``names`` would spell it.

    A whole model takes a whole file as it is. A backbone takes what lies under ``backbone.`` and nothing
    else, so that a key of a head can never pass for one of its own.
    """
    if is_whole(names) or not is_whole(layout.tensors):
        return layout
    inside = {name[len(_BACKBONE):]: value for name, value in layout.tensors.items()
              if name.startswith(_BACKBONE)}
    aside = [name for name in layout.tensors if not name.startswith(_BACKBONE)]
    steps = [*layout.steps, "keys under 'backbone.'"]
    if 'head.fc.weight' in aside and 'stages.0.blocks.0.prelkb_bn.weight' in inside:
        # mmpretrain's converter put the classifier's last norm there. It must not pass for a norm on the
        # outputs, which RepLKNet-XL has downstream and no classifier has.
        last = max(int(name.split('.')[1]) for name in inside if name.startswith('stages.'))
        moved = f'stages.{last}.norm.'
        inside = {name.replace(moved, 'norm.') if name.startswith(moved) else name: value
                  for name, value in inside.items()}
        steps.append("mmpretrain's RepLKNet, the classifier's norm moved back")
    return Layout(inside, steps, aside)
