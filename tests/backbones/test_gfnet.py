import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlk.analysis.complexity import count
from mmlk.backbones.gfnet import ARCHS, Block, GFNet
from mmlk.weights import load
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'GFNet': dict(embed_dim=(8, 16, 24, 32), depth=(1, 1, 2, 1), img_size=96),
}

SMALL = dict(embed_dim=(4, 8, 12, 16), depth=(1, 2, 3, 1))
FORMS = {
    'H-Ti_64': (dict(ARCHS['H-Ti'], img_size=64), (1, 3, 64, 64)),
    '224': (dict(SMALL, mlp_ratio=(4, 3, 2, 4), no_layerscale=True), (1, 3, 224, 224)),
    'odd': (dict(SMALL, embed_dim=(8, 12, 16, 24), img_size=96), (2, 3, 75, 107)),
}
HEAD = ['norm.weight', 'norm.bias', 'head.weight', 'head.bias']  # of the classifier


def without_output_norms(net):
    """Official GFNet returns no maps; those of the fixture come out of its blocks."""
    for i in net.out_indices:
        net.add_module(f'norm{i}', nn.Identity())
    return net


def on_meta(arch) -> GFNet:
    with torch.device('meta'):
        return GFNet(arch)


def classifier_parameters(arch) -> int:
    """Of the official classifier: a norm and a head of 1000 classes in place of the norms on the outputs."""
    net = on_meta(arch)
    last = net.out_channels[-1]
    return sum(p.numel() for p in net.parameters()) - 2 * sum(net.out_channels) + 2 * last + 1000 * (last + 1)


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, repo):
    fixture = np.load(repo / 'tests/data/gfnet.npz')
    arch, shape = FORMS[form]
    assert classifier_parameters(arch) == fixture[f'{form}.parameters']
    net = without_output_norms(fill(GFNet(arch)).eval())
    with torch.no_grad():
        maps = net(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


# G by the authors' later count, transforms included (official issue 15), as in the paper's last version. The official
# README still has 2.0, 4.5 and 8.4: less than convolutions and linear layers alone have (2.04, 4.58 and 8.51).
@pytest.mark.parametrize('arch, parameters, flops', [
    ('H-Ti', 15_085_096, 2.1), ('H-S', 32_162_632, 4.6), ('H-B', 53_744_200, 8.6)])
def test_published_parameters_and_flops(arch, parameters, flops):
    assert classifier_parameters(arch) == parameters
    net = on_meta(arch)
    macs = count(net, (224, 224)).macs + 1000 * net.out_channels[-1]
    assert round(macs / 1e9, 1) == flops


@pytest.mark.parametrize('size, resized', [(96, False), (97, False), (104, True)])
def test_filters_and_positions_of_the_size_are_used_as_they_are(size, resized, monkeypatch):
    calls, interpolate = [], F.interpolate
    monkeypatch.setattr(F, 'interpolate', lambda *args, **kwargs: calls.append(1) or interpolate(*args, **kwargs))
    GFNet(dict(SMALL, img_size=96))(image(1, 3, size, size))
    assert bool(calls) is resized


@pytest.mark.parametrize('name', ['pos_embed', 'blocks.0.0.filter.complex_weight', 'blocks.3.0.filter.complex_weight'])
def test_positions_and_filters_matter(name):
    net = fill(GFNet(dict(SMALL, img_size=96))).eval()
    x = image(1, 3, 75, 107)
    with torch.no_grad():
        before = net(x)[-1]
        parameter = net.get_parameter(name)
        parameter.copy_(parameter.roll(1, 0 if name != 'pos_embed' else 1))
        assert relative_error(net(x)[-1], before) > 1e-3


def test_layer_scale():
    assert all(b.gamma.eq(1e-5).all() for b in GFNet(dict(SMALL, init_values=1e-5)).modules() if isinstance(b, Block))
    ones, none = fill(GFNet(dict(SMALL, img_size=64))), GFNet(dict(SMALL, img_size=64, no_layerscale=True))
    values = ones.state_dict()
    for name, value in values.items():
        if name.endswith('gamma'):
            value.fill_(1)
    none.load_state_dict({name: v for name, v in values.items() if not name.endswith('gamma')})
    x = image(1, 3, 64, 64)
    for a, b in zip(ones(x), none(x)):
        assert torch.equal(a, b)


def test_norm_cfg_is_that_of_the_output_norms():
    arch = dict(SMALL, img_size=64)
    net = GFNet(arch, norm_cfg=dict(type='GN', num_groups=2))
    assert all(isinstance(net.get_submodule(f'norm{i}'), nn.GroupNorm) for i in range(4))
    assert len([m for m in net.modules() if isinstance(m, nn.GroupNorm)]) == 4
    norms = [m for m in GFNet(arch).modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 * sum(SMALL['depth']) + 4 and all(m.eps == 1e-6 for m in norms)


@pytest.mark.parametrize('autocast', [True, False])
def test_half_precision(autocast):
    arch = dict(SMALL, img_size=96)
    net, x = fill(GFNet(arch)).eval(), image(1, 3, 75, 107)
    with torch.no_grad():
        expected = net(x)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            maps = net(x) if autocast else net.bfloat16()(x.bfloat16())
    for feature, theirs in zip(maps, expected):
        assert autocast or feature.dtype == torch.bfloat16
        assert relative_error(feature, theirs) < 0.05


def test_initial_weights_are_the_official_distribution():
    torch.manual_seed(0)
    net = GFNet(dict(SMALL, embed_dim=(32, 64, 96, 128)))
    for weight in (net.pos_embed, net.blocks[0][0].filter.complex_weight, net.blocks[3][0].mlp.fc1.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not any(m.bias.any() for m in net.modules() if isinstance(m, nn.Linear))


def test_official_files_load(tmp_path):
    arch = dict(SMALL, img_size=64)
    donor = fill(GFNet(arch))
    body = {name: v for name, v in donor.state_dict().items() if not name.startswith('norm')}
    torch.save({'model': {**body, **{name: torch.ones(16) for name in HEAD}}}, tmp_path / 'gfnet-h-ti.pth')
    net = GFNet(arch)
    report = load(net, tmp_path / 'gfnet-h-ti.pth')
    assert report.unexpected == HEAD
    assert set(report.left) == {f'norm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias')}
    assert all(torch.equal(net.state_dict()[name], v) for name, v in body.items())


@pytest.mark.parametrize('arch, problem', [
    ('XS', "unknown arch 'XS' of GFNet; there are H-Ti, H-S, H-B"),
    (dict(depth=(1, )), 'lacks embed_dim'),
    (dict(SMALL, depth=(1, 1)), 'one entry per stage, got 4 and 2'),
    (dict(SMALL, mlp_ratio=(4, 4)), 'one entry per stage, got 2, 4 and 4'),
    (dict(SMALL, mlp_ratio=(4, 4, 4, 0)), 'mlp_ratio 0 leaves no channels'),
    (dict(SMALL, embed_dim=(4, 8, 12, 0)), 'embed_dim must be positive integers'),
    (dict(SMALL, img_size=31), 'img_size must be at least 32, got 31'),
    (dict(SMALL, patch_size=4), 'unknown keys in arch of GFNet: patch_size'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        GFNet(arch)


def test_each_block_is_a_layer():
    net = on_meta('H-B')
    expected = {'pos_embed': 0, 'patch_embed.0.proj.weight': 0, 'blocks.0.0.gamma': 1, 'blocks.0.2.norm1.bias': 3,
                'patch_embed.1.proj.bias': 4, 'blocks.1.0.mlp.fc1.weight': 4, 'patch_embed.2.proj.weight': 7,
                'blocks.2.26.filter.complex_weight': 33, 'patch_embed.3.proj.weight': 34, 'blocks.3.2.norm2.weight': 36,
                'norm0.weight': 37, 'norm3.bias': 37}
    assert {name: net.layer_id(name) for name in expected} == expected
    assert net.num_layers == 36
