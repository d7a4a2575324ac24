"""Backbones with arguments of any kind: built, or refused with a message that names the argument."""
import copy
import inspect
import re

import pytest
import torch
from hypothesis import strategies as st

from mmlk.registry import MODELS
from tests.backbones.test_contract import SHARED, TINY, unbranched
from tests.fuzz.cases import cases

MODELS.import_from_location()
FLAGS = {'norm_eval', 'with_cp', 'merged'}

numbers = st.one_of(st.integers(-3, 70), st.floats(-2, 4), st.sampled_from([float('nan'), float('inf'), 1e39, True]))
words = st.one_of(st.none(), st.text(max_size=4), st.just(object),
                  st.dictionaries(st.text(max_size=3), numbers, max_size=2))
values = st.one_of(numbers, words, st.lists(st.one_of(numbers, words), max_size=5),
                   st.lists(numbers, min_size=4, max_size=4).map(tuple),
                   st.lists(st.lists(numbers, max_size=4), max_size=4))


def own_arguments(family: str) -> list:
    """Arguments that can be wrong: merged has no effect on families without branches."""
    unchecked = {'arch', 'init_cfg', *(['merged'] if unbranched(family) else [])}
    names = [name for name in inspect.signature(MODELS.get(family).__init__).parameters if name != 'self']
    return sorted(set(names) - unchecked)


def keys_of(family: str) -> list:
    defaults = getattr(inspect.getmodule(MODELS.get(family)), '_DEFAULTS', {})
    return sorted({*TINY[family], *defaults})


def build(family: str, **kwargs):
    with torch.device('meta'):  # whatever its size
        return MODELS.get(family)(**{'arch': copy.deepcopy(TINY[family]), **kwargs})


def holds(family: str, *names: str, **kwargs) -> bool:
    """Whether it was built; otherwise the error is ours and has one of the names in it."""
    try:
        build(family, **kwargs)
    except (TypeError, ValueError) as error:
        assert set(names) & set(re.findall(r'\w+', str(error))), str(error)
        return False
    return True


@cases(150, draw=st.data(), family=st.sampled_from(sorted(TINY)), value=values)
def test_arguments(draw, family, value):
    name = draw.draw(st.sampled_from(own_arguments(family)))
    built = holds(family, name, **{name: value})
    assert not built or name not in FLAGS or isinstance(value, bool)


@cases(250, draw=st.data(), family=st.sampled_from(sorted(TINY)), value=values)
def test_entries_of_an_arch(draw, family, value):
    key = draw.draw(st.sampled_from(keys_of(family)))
    holds(family, *keys_of(family), arch={**TINY[family], key: value})


def lists_of(family):
    return [key for key in keys_of(family) if isinstance(TINY[family].get(key), tuple)]


@cases(60, draw=st.data(), family=st.sampled_from([name for name in sorted(TINY) if lists_of(name)]),
       value=st.one_of(numbers, words))
def test_one_entry_of_a_list(draw, family, value):
    """Channels of the wrong kind, even kernels, small kernels larger than large ones, a stage too many."""
    key = draw.draw(st.sampled_from(lists_of(family)))
    entries = list(TINY[family][key])
    place = draw.draw(st.integers(0, len(entries)))
    entries[place:place + 1] = [value]
    holds(family, *keys_of(family), arch={**TINY[family], key: entries})


@cases(40, family=st.sampled_from(sorted(TINY)), arch=st.one_of(st.text(max_size=6), numbers, st.lists(numbers)),
       key=st.text(min_size=1, max_size=6))
def test_archs_that_are_not_there(family, arch, key):
    assert not holds(family, 'arch', arch=arch)
    if key not in keys_of(family):
        with pytest.raises(ValueError, match=re.escape(f'unknown keys in arch of {family}: {key};')):
            build(family, arch={**TINY[family], key: 1})


@pytest.mark.parametrize('norm_cfg', [dict(), dict(type='Nothing'), dict(type='GN'), dict(type='GN', num_groups=5),
                                      dict(type='BN', epsilon=1), dict(type=3)])
@pytest.mark.parametrize('family', sorted(set(TINY) - {'GFNet'}))
def test_norms_that_cannot_be_built(family, norm_cfg):
    with pytest.raises(ValueError, match='norm_cfg'):
        build(family, norm_cfg=norm_cfg)


def test_shared_arguments_are_all_tried():
    assert all(set(SHARED) - {'arch', 'init_cfg', 'merged'} <= set(own_arguments(family)) for family in TINY)
