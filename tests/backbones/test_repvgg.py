import numpy as np
import pytest
import torch
from torch import nn

from mmlk.backbones.repvgg import ARCHS, RepVGG
from mmlk.reparam import merge
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'RepVGG': dict(num_blocks=(2, 2, 2, 2), width_multiplier=(0.25, 0.25, 0.25, 0.25),
                   override_groups_map={2: 2, 4: 4}),
}

SMALL = dict(num_blocks=(2, 2, 3, 1), width_multiplier=(0.25, 0.25, 0.25, 0.5))
GROUPED = dict(SMALL, override_groups_map={2: 2, 4: 4, 6: 2, 8: 4})
PSPNET = dict(strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4))
FORMS = {
    'A0': (dict(arch='A0'), (1, 3, 64, 32)),
    'grouped': (dict(arch=GROUPED), (1, 3, 117, 75)),
    'se': (dict(arch=dict(SMALL, use_se=True)), (2, 3, 65, 65)),  # the official SE block takes square maps only
    'pspnet': (dict(arch=GROUPED, **PSPNET), (1, 3, 65, 49)),
}
# Parameters of the official classifiers, counted on the official code: training form, merged.
PARAMETERS = {
    'A0': (9_108_968, 8_309_384),
    'A1': (14_092_264, 12_789_864),
    'A2': (28_210_600, 25_499_944),
    'B0': (15_817_960, 14_339_048),
    'B1': (57_415_016, 51_829_480),
    'B1g2': (45_782_376, 41_360_104),
    'B1g4': (39_966_056, 36_125_416),
    'B2': (89_022_376, 80_315_112),
    'B2g2': (70_846_376, 63_956_712),
    'B2g4': (61_758_376, 55_777_512),
    'B3': (123_085_288, 110_960_872),
    'B3g2': (96_911_848, 87_404_776),
    'B3g4': (83_825_128, 75_626_728),
    'D2se': (133_334_836, 120_387_572),
}


def test_every_arch_is_counted():
    assert set(PARAMETERS) == set(ARCHS)


@pytest.mark.parametrize('arch', ARCHS)
def test_parameter_counts_are_the_official_ones(arch):
    for merged, expected in zip((False, True), PARAMETERS[arch]):
        with torch.device('meta'):
            net = RepVGG(arch, merged=merged)
        classifier = 1000 * net.out_channels[-1] + 1000
        assert sum(p.numel() for p in net.parameters()) + classifier == expected


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, repo):
    fixture = np.load(repo / 'tests/data/repvgg.npz')
    arguments, shape = FORMS[form]
    net = fill(RepVGG(**arguments)).eval()
    with torch.no_grad():
        for maps in (net(image(*shape)), merge(net)(image(*shape))):
            for i, feature in enumerate(maps):
                assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


@pytest.mark.parametrize('form', FORMS)
def test_merged_form_loads_and_equals(form):
    arguments, shape = FORMS[form]
    net = fill(RepVGG(**arguments)).double().train()
    merged = merge(net)
    built = RepVGG(**arguments, merged=True).double().eval()
    built.load_state_dict(merged.state_dict())
    x = image(*shape).double()
    with torch.no_grad():
        for a, b in zip(built(x), net.eval()(x)):
            assert relative_error(a, b) < 1e-12
    assert built.merged and not net.merged and not any(isinstance(m, nn.BatchNorm2d) for m in built.modules())


@pytest.mark.parametrize('strides, dilations', [((2, 2, 1, 1), (1, 1, 2, 4)), ((1, 2, 2, 2), (1, 1, 1, 1)),
                                                ((2, 2, 2, 1), (1, 1, 1, 2))])
def test_strides_and_dilations(strides, dilations):
    net = fill(RepVGG(GROUPED, strides=strides, dilations=dilations)).eval()
    with torch.no_grad():
        maps = net(image(1, 3, 97, 65))
    reduction = 2
    for stage, (feature, stride) in enumerate(zip(maps, strides)):
        reduction *= stride
        assert feature.shape[2:] == (-(-97 // reduction), -(-65 // reduction)), stage
    # the same parameters whatever the strides: an official file fits
    plain = RepVGG(GROUPED)
    assert list(plain.state_dict()) == list(net.state_dict())
    for i, dilation in enumerate(dilations):
        blocks = getattr(net, f'stage{i + 1}')
        assert {b.rbr_dense.conv.dilation for b in blocks} == {(dilation, dilation)}


def test_dilations_of_single_blocks():
    depth = GROUPED['num_blocks'][2]
    net = RepVGG(GROUPED, strides=(2, 2, 1, 1), dilations=(1, 1, (1, ) * (depth - 1) + (2, ), 4))
    assert [b.rbr_dense.conv.dilation[0] for b in net.stage3] == [1] * (depth - 1) + [2]
    for wrong in ((1, ) * (depth + 1), (1, ) * (depth - 1) + (0, )):
        with pytest.raises(ValueError, match='dilations must be 4 positive integers, or as many as its blocks'):
            RepVGG(GROUPED, dilations=(1, 1, wrong, 1))


@pytest.mark.parametrize('wrong', [(2, 2, 2), (2, 2, 2, 0), (2, 2, 2, 1.0)])
@pytest.mark.parametrize('name', ['strides', 'dilations'])
def test_wrong_strides_and_dilations_are_refused(name, wrong):
    with pytest.raises(ValueError, match=f'{name} must be 4 positive integers'):
        RepVGG(SMALL, **{name: wrong})


@pytest.mark.parametrize('arch, problem', [
    ('B4', "unknown arch 'B4' of RepVGG; there are A0, A1"),
    (dict(num_blocks=(1, 1, 1, 1)), 'lacks width_multiplier'),
    (dict(SMALL, num_blocks=(1, 1, 1)), 'must have 4 entries, got 3 and 4'),
    (dict(SMALL, num_blocks=(1, 1, 0, 1)), 'num_blocks must be positive integers'),
    (dict(SMALL, width_multiplier=(0.25, 0.25, 0.25, 0)), 'gives .* channels; each stage needs at least 1'),
    (dict(SMALL, width_multiplier=(0.2, 1, 1, 1), use_se=True), 'each stage needs at least 16'),
    (dict(SMALL, override_groups_map={0: 2}), 'the layers after the stem, 1 to 8; there is no 0'),
    (dict(SMALL, override_groups_map={'2.': 2, 9: 2}), "there is no '2.', 9"),
    (dict(SMALL, deploy=True), 'unknown keys in arch of RepVGG: deploy'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        RepVGG(arch)


def test_groups_of_the_published_archs():
    for groups in (2, 4):
        with torch.device('meta'):
            net = RepVGG(f'B1g{groups}')
        found = [b.rbr_dense.conv.groups for b in net.modules() if hasattr(b, 'rbr_dense')]
        assert found == [1, *[1, groups] * 13, 1]  # the stem, and 27 layers of which every second


def test_layer_ids():
    with torch.device('meta'):
        net = RepVGG('A0')
    expected = {'stage0.rbr_dense.conv.weight': 0, 'stage1.0.rbr_1x1.bn.bias': 1, 'stage1.1.rbr_identity.weight': 2,
                'stage2.3.rbr_dense.bn.weight': 6, 'stage3.13.rbr_dense.conv.weight': 20,
                'stage4.0.rbr_1x1.conv.weight': 21}
    assert {name: net.layer_id(name) for name in expected} == expected
    assert net.num_layers == 21


def test_every_parameter_receives_a_gradient_with_se():
    net = fill(RepVGG(dict(SMALL, width_multiplier=(1, 0.5, 0.5, 0.5), use_se=True)), seed=1)
    sum((m**2).sum() for m in net(image(4, 3, 64, 96))).backward()
    lost = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not lost, lost
