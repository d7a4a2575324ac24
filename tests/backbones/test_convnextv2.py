"""``tests/data/convnextv2.npz`` was made by ``models/convnextv2.py`` of github.com/facebookresearch/ConvNeXt-V2
(2553895, code MIT), torch 2.12.1, CPU, with MinkowskiEngine's import and timm's old names stubbed: ``ConvNeXtV2`` with
1000 classes in eval mode, filled by ``fill(net)`` in float32, run in float64 on ``image(*shape)`` of ``FORMS``. It has
the outputs of the four stages and every 8th logit as float32, and the number of parameters.
"""
import re

import numpy as np
import pytest
import timm
import torch
from torch import nn

from mmlk._licences import tell_licence
from mmlk.analysis.classifiers import with_head
from mmlk.analysis.complexity import count
from mmlk.backbones import ConvNeXt, ConvNeXtV2
from mmlk.backbones.convnextv2 import ARCHS, BlockV2
from mmlk.weights import load
from mmlk.weights.catalog import FAMILIES
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'ConvNeXtV2': dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
}

SMALL = dict(depths=(1, 2, 3, 1), dims=(16, 24, 32, 48))
FORMS = {'A': ('A', (1, 3, 64, 32)), 'odd': (SMALL, (2, 3, 75, 107))}


def without_output_norms(net):
    """The official code returns no maps; those of the fixture come out of its stages."""
    for i in net.out_indices:
        net.add_module(f'norm{i}', nn.Identity())
    return net


def official_file(path, net, width):
    """The file of a classifier under the official names, which are ours."""
    body = {name: value for name, value in net.state_dict().items() if not re.match(r'norm\d', name)}
    head = nn.Module()
    head.norm, head.head = nn.LayerNorm(width), nn.Linear(width, 1000)
    torch.save({'model': {**body, **fill(head).state_dict()}}, path)
    return str(path)


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, repo, tmp_path):
    fixture = np.load(repo / 'tests/data/convnextv2.npz')
    arch, shape = FORMS[form]
    donor = fill(ConvNeXtV2(arch)).eval()
    width = donor.out_channels[-1]
    classifier = with_head(ConvNeXtV2(arch), official_file(tmp_path / 'x.pth', donor, width))
    assert sum(p.numel() for p in classifier.parameters()) == fixture[f'{form}.parameters']
    with torch.no_grad():
        maps = without_output_norms(donor)(image(*shape))
        logits = classifier.network(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5
    assert relative_error(logits[:, ::8], torch.from_numpy(fixture[f'{form}.logits'])) < 1e-5


# parameters of the official constructors with 1000 classes; multiply-adds of the official README
@pytest.mark.parametrize('arch, classifier, published', [
    ('A', 3_708_400, 0.55e9), ('F', 5_233_240, 0.78e9), ('P', 9_066_280, 1.37e9), ('N', 15_623_800, 2.45e9),
    ('T', 28_635_496, 4.47e9), ('B', 88_717_800, 15.4e9), ('L', 197_956_840, 34.4e9), ('H', 660_289_640, 115e9)])
def test_published_counts(arch, classifier, published):
    with torch.device('meta'):
        counted = count(ConvNeXtV2(arch), (224, 224))
    dims = ARCHS[arch]['dims']
    assert counted.parameters - 2 * sum(dims) + 1002 * dims[-1] + 1000 == classifier
    assert counted.macs + 1000 * dims[-1] == pytest.approx(published, rel=0.01)


def test_without_its_scale_and_bias_grn_changes_nothing():
    """Then a network is ConvNeXt without layer scale, which also says where GRN stands."""
    net = fill(ConvNeXtV2(SMALL)).eval()
    plain = ConvNeXt(dict(SMALL, layer_scale_init_value=0)).eval()
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if '.grn.' not in name})
    x = image(1, 3, 64, 96)
    with torch.no_grad():
        assert relative_error(net(x)[3], plain(x)[3]) > 1e-3
        for module in net.modules():
            if isinstance(module, BlockV2):
                module.grn.gamma.zero_()
                module.grn.beta.zero_()
        for ours, expected in zip(net(x), plain(x)):
            assert relative_error(ours, expected) < 1e-6


def test_files_of_timm_and_mmpretrain(tmp_path):
    theirs = fill(timm.create_model('convnextv2_atto', depths=SMALL['depths'], dims=SMALL['dims'])).eval()
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    ours = ConvNeXtV2(SMALL)
    report = load(ours, tmp_path / 'timm.pth')
    assert "timm's ConvNeXt" in report.format
    assert set(report.left) == {f'norm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias')}
    x = image(1, 3, 75, 96)
    with torch.no_grad():
        assert relative_error(without_output_norms(ours.eval())(x)[3], theirs.forward_features(x)) < 1e-5

    spelled = {}  # by mmpretrain's tools/model_converters/convnext_to_mmpretrain.py
    for name, value in fill(ConvNeXtV2(SMALL), 1).state_dict().items():
        name = name.replace('.dwconv.', '.depthwise_conv.').replace('.pwconv', '.pointwise_conv')
        spelled[f'backbone.{name}'] = value.flatten() if '.grn.' in name else value
    torch.save({'state_dict': spelled}, tmp_path / 'mmpretrain.pth')
    ours = ConvNeXtV2(SMALL)
    report = load(ours, tmp_path / 'mmpretrain.pth')
    assert "mmpretrain's ConvNeXt" in report.format and not report.left
    for (name, value), expected in zip(ours.state_dict().items(), fill(ConvNeXtV2(SMALL), 1).state_dict().values()):
        assert torch.equal(value, expected), name


def test_norm_cfg_is_that_of_the_output_norms():
    net = ConvNeXtV2(SMALL, norm_cfg=dict(type='GN', num_groups=4))
    assert [name for name, m in net.named_modules() if isinstance(m, nn.GroupNorm)] == [f'norm{i}' for i in range(4)]


# get_num_layer_for_convnext ('group') and get_num_layer_for_convnext_single of the official optim_factory.py; with the
# latter the official stem has the id 1
@pytest.mark.parametrize('arch, layers, expected', [
    ('T', 18, {'downsample_layers.0.0.weight': 0, 'stages.0.0.grn.gamma': 1, 'stages.0.2.norm.bias': 3,
               'downsample_layers.1.1.weight': 4, 'stages.2.8.pwconv1.weight': 15, 'downsample_layers.3.0.bias': 16,
               'stages.3.2.grn.beta': 18, 'norm0.weight': 19}),
    ('B', 12, {'downsample_layers.0.1.weight': 0, 'stages.0.2.grn.gamma': 1, 'downsample_layers.1.0.weight': 2,
               'stages.2.2.dwconv.weight': 3, 'stages.2.3.dwconv.weight': 4, 'stages.2.26.grn.beta': 11,
               'downsample_layers.3.1.bias': 12, 'stages.3.0.pwconv2.weight': 12, 'norm3.bias': 13})])
def test_layer_ids_are_the_official_ones(arch, layers, expected):
    with torch.device('meta'):
        net = ConvNeXtV2(arch)
    assert {name: net.layer_id(name) for name in expected} == expected and net.num_layers == layers
    with torch.device('meta'):
        assert ConvNeXtV2(arch, out_indices=(0, )).num_layers == {'T': 3, 'B': 1}[arch]


def test_scale_and_bias_of_grn_have_no_weight_decay():
    # get_parameter_groups of the official optim_factory.py: names that end in .gamma or .beta
    net = ConvNeXtV2(SMALL)
    assert net.no_weight_decay() == {name for name, _ in net.named_parameters()
                                     if name.endswith(('.gamma', '.beta'))} != set()


def test_the_licence_of_every_file_is_told_once(monkeypatch):
    told = []
    monkeypatch.setattr('mmengine.logging.print_log', lambda text, logger: told.append(text))
    tell_licence.cache_clear()
    entries = FAMILIES['ConvNeXtV2']
    for entry in (*entries, *entries):
        tell_licence(entry.name, entry.licence)
    assert len(told) == len(entries) == 18 and all('CC-BY-NC-4.0' in text for text in told)


@pytest.mark.parametrize('arch, problem', [
    ('S', "unknown arch 'S' of ConvNeXtV2; there are A, F, P, N, T, B, L, H"),
    (dict(SMALL, layer_scale_init_value=1e-6), 'unknown keys in arch of ConvNeXtV2: layer_scale_init_value'),
    (dict(SMALL, dims=(8, 16)), 'one entry per stage, got 4 and 2'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        ConvNeXtV2(arch)
