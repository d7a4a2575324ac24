import re
import sys
from functools import lru_cache

import pytest
import torch
import torchvision
from torch import nn

from mmlk.backbones import BaseBackbone, ConvNeXt, RepLKNet, RepVGG
from mmlk.registry import MODELS
from mmlk.reparam import merge
from mmlk.weights.identify import identify
from tests.weights.conftest import TINY

FAMILIES = {name: sys.modules[family.__module__].ARCHS for name, family in sorted(MODELS.module_dict.items())
            if isinstance(family, type) and issubclass(family, BaseBackbone)
            and hasattr(sys.modules[family.__module__], 'ARCHS')}


def build(family, arch, **kwargs):
    with torch.device('meta'):
        return MODELS.get(family)(arch=arch, **kwargs)


@lru_cache(maxsize=None)
def state_of(family, arch, form):
    """Names and empty tensors of an arch, in the training or the merged form."""
    return build(family, arch, merged=form == 'merged').state_dict()


def named(line):
    """The archs and the form of a line."""
    match = re.fullmatch('(.*?)(?:, (training|merged) form)?', line)
    return match[1].split(' or '), match[2]


@pytest.mark.parametrize('family', FAMILIES)
def test_every_arch_of_every_family_in_both_forms(family):
    assert FAMILIES[family]
    for arch in FAMILIES[family]:
        same = state_of(family, arch, 'training').keys() == state_of(family, arch, 'merged').keys()
        for form in ('training', ) if same else ('training', 'merged'):
            state = state_of(family, arch, form)
            names, told = named(identify(state))
            assert f'{family}-{arch}' in names and told == (None if same else form)
            shapes = {name: value.shape for name, value in state.items()}
            for other in set(names) - {f'{family}-{arch}'}:  # only what nobody could tell apart
                others = state_of(*other.split('-', 1), form)
                assert shapes == {name: value.shape for name, value in others.items()}


@pytest.mark.parametrize('family', FAMILIES)
def test_first_stages_alone_and_a_model_around(family):
    arch = next(iter(FAMILIES[family]))
    state = build(family, arch, out_indices=(2, )).state_dict()
    assert f'{family}-{arch}' in named(identify(state))[0]
    whole = {**{f'backbone.{name}': value for name, value in state.items()}, 'head.fc.weight': torch.ones(3, 3)}
    assert identify(whole) == identify(state)


def test_two_archs_that_differ_in_depth_alone():
    # the last network of the roadmap is ConvNeXt-T
    assert identify(build('ConvNeXt', 'T').state_dict()) == 'ConvNeXt-T or ConvNeXtRoadmap-separate-downsampling'
    assert identify(build('ConvNeXt', 'S').state_dict()) == 'ConvNeXt-S'
    assert identify(build('ConvNeXt', 'S', out_indices=(2, )).state_dict()) == 'ConvNeXt-S'
    shared = identify(build('ConvNeXt', 'S', out_indices=(1, )).state_dict())
    assert {'ConvNeXt-T', 'ConvNeXt-S'} <= set(named(shared)[0])


@pytest.mark.parametrize('make, said', [
    (lambda: RepLKNet(TINY), 'RepLKNet, incomplete or of no published arch, training form'),
    (lambda: merge(RepLKNet(TINY)), 'RepLKNet, incomplete or of no published arch, merged form'),
    (lambda: RepVGG(dict(num_blocks=(2, 3, 2, 1), width_multiplier=(0.25, ) * 4)),
     'RepVGG, incomplete or of no published arch, training form'),
])
def test_archs_of_ones_own(make, said):
    assert identify(make().state_dict()) == said


def test_an_incomplete_arch_is_not_passed_for_the_whole():
    state = build('ConvNeXt', 'T-31').state_dict()
    del state['stages.1.2.pwconv1.weight']
    assert identify(state) == 'ConvNeXt, incomplete or of no published arch, training form'


def test_a_block_too_many_is_no_published_arch():
    state = ConvNeXt(dict(depths=(3, 3, 10, 3), dims=(96, 192, 384, 768))).state_dict()
    assert identify(state).startswith('ConvNeXt')
    assert 'ConvNeXt-' not in identify(state)


@pytest.mark.parametrize('make', [lambda: nn.Linear(2, 2), nn.ReLU, torchvision.models.resnet50,
                                  torchvision.models.swin_t])
def test_what_is_of_no_family(make):
    with torch.device('meta'):
        assert identify(make().state_dict()) is None


def test_nothing_is_left_changed():
    """Archs are built aside: neither the random numbers nor the default device of the caller are touched."""
    state, before = build('RepLKNet', '31L').state_dict(), torch.get_rng_state()
    identify(state)
    assert torch.equal(torch.get_rng_state(), before) and torch.ones(1).device.type == 'cpu'
