import numpy as np
import pytest
import torch
from torch import nn

from mmlk.analysis.complexity import count
from mmlk.backbones.hornet import ARCHS, Block, GlobalLocalFilter, HorNet
from mmlk.weights import load
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'HorNet': dict(depths=(1, 1, 2, 1), base_dim=8, gnconv=(
        dict(order=2), dict(order=3), dict(order=3, s=1 / 3, h=14, w=8), dict(order=4, s=1 / 3, h=7, w=4))),
}


def gn(order, **other):
    return dict(order=order, s=1 / 3, **other)


SMALL = dict(depths=(1, 2, 3, 1), base_dim=8, gnconv=(gn(2), gn(3), gn(4, h=14, w=8), gn(5, h=7, w=4)))
# the third and the fourth stage at the size of their filters, the second not
NATIVE = dict(SMALL, gnconv=(dict(order=1, s=0.5), gn(2, h=24, w=13), gn(3, h=6, w=4), dict(order=4, h=3, w=2)),
              layer_scale_init_value=0)
FORMS = {'T': ('T', (1, 3, 64, 32)), 'T-GF': ('T-GF', (1, 3, 64, 32)), 'odd': (SMALL, (2, 3, 75, 107)),
         'native': (NATIVE, (1, 3, 96, 96))}
HEAD = ['norm.weight', 'norm.bias', 'head.weight', 'head.bias']  # of the classifier


def on_meta(arch) -> HorNet:
    with torch.device('meta'):
        return HorNet(arch)


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, repo):
    fixture = np.load(repo / 'tests/data/hornet.npz')
    arch, shape = FORMS[form]
    net = fill(HorNet(arch)).eval()
    assert sum(p.numel() for p in net.parameters()) == fixture[f'{form}.parameters']
    with torch.no_grad():
        maps = net(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


# published for 384x384 and for L with a head of 10450 classes (209M, 211M and 216M parameters); T-GF-384 and S-GF-384
# exist downstream only
@pytest.mark.parametrize('arch, parameters, flops', [
    ('T', 22_409_512, 4.0), ('T-GF', 22_991_848, 3.9), ('S', 49_528_264, 8.8), ('S-GF', 50_401_768, 8.7),
    ('B', 87_256_680, 15.6), ('B-GF', 88_421_352, 15.5), ('B-GF-384', 92_099_560, None),
    ('L', 194_542_504, 34.8), ('L-GF', 196_289_512, 34.7), ('L-GF-384', 201_806_824, 101.8)])
def test_published_parameters_and_flops(arch, parameters, flops):
    net = on_meta(arch)
    side, last = 384 if arch.endswith('384') else 224, net.out_channels[-1]
    ours = count(net, (side, side))
    # of the official classifier: a norm and a head of 1000 classes in place of the norms on the outputs
    assert ours.parameters - 2 * sum(net.out_channels) + 2 * last + 1000 * (last + 1) == parameters
    if flops:
        assert (ours.macs + 1000 * last) / 1e9 == pytest.approx(flops, rel=0.01)


@pytest.mark.parametrize('arch', ARCHS)
def test_mixers_of_every_arch(arch):
    net = on_meta(arch)
    filters = {'-GF': [(14, 8), (7, 4)], '-GF-384': [(24, 13), (12, 7)]}.get(arch[1:], [])
    assert [tuple(m.complex_weight.shape[1:3]) for m in net.modules() if isinstance(m, GlobalLocalFilter)] == (
        18 * filters[:1] + 2 * filters[1:])
    assert [len(block.gnconv.dims) for stage in net.stages for block in stage[:1]] == [2, 3, 4, 5]
    assert {block.gnconv.scale for stage in net.stages for block in stage} == {1 / 3}


def test_layer_scale():
    blocks = [b for b in HorNet(SMALL).modules() if isinstance(b, Block)]
    assert all(b.gamma1.eq(1e-6).all() and b.gamma2.eq(1e-6).all() for b in blocks)
    ones, none = (HorNet(dict(SMALL, layer_scale_init_value=v)) for v in (1.0, 0))
    none.load_state_dict({name: v for name, v in ones.state_dict().items() if 'gamma' not in name})
    x = image(1, 3, 64, 64)
    for a, b in zip(ones(x), none(x)):
        assert torch.equal(a, b)


def test_norm_cfg_is_that_of_the_output_norms():
    net = HorNet(SMALL, norm_cfg=dict(type='GN', num_groups=4))
    assert all(isinstance(net.get_submodule(f'norm{i}'), nn.GroupNorm) for i in range(4))
    assert len([m for m in net.modules() if isinstance(m, nn.GroupNorm)]) == 4
    norms = [m for m in HorNet(SMALL).modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 * 7 + 2 * 4 + 4 + 4 and all(m.eps == 1e-6 for m in norms)


@pytest.mark.parametrize('autocast', [True, False])
def test_half_precision(autocast):
    net, x = fill(HorNet(SMALL)).eval(), image(1, 3, 75, 107)
    with torch.no_grad():
        expected = net(x)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            maps = net(x) if autocast else net.bfloat16()(x.bfloat16())
    for feature, theirs in zip(maps, expected):
        assert autocast or feature.dtype == torch.bfloat16
        assert relative_error(feature, theirs) < 0.05


def test_initial_weights_are_the_official_distribution():
    torch.manual_seed(0)
    net = HorNet(dict(SMALL, base_dim=32))
    mixer = net.stages[2][0].gnconv
    for weight in (mixer.proj_in.weight, mixer.dwconv.complex_weight, net.stages[3][0].pwconv1.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not any(m.bias.any() for m in net.modules()
                   if isinstance(m, (nn.Conv2d, nn.Linear)) and m.bias is not None)


def test_official_files_load(tmp_path):
    donor = fill(HorNet(SMALL))
    body = {name: v for name, v in donor.state_dict().items() if not name.startswith('norm')}
    torch.save({'model': {**body, **{name: torch.ones(64) for name in HEAD}}}, tmp_path / 'classifier.pth')
    net = HorNet(SMALL)
    report = load(net, tmp_path / 'classifier.pth')
    assert report.unexpected == HEAD
    assert set(report.left) == {f'norm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias')}
    assert all(torch.equal(net.state_dict()[name], v) for name, v in body.items())

    whole = {f'backbone.{name}': v for name, v in donor.state_dict().items()}
    torch.save({'state_dict': {**whole, 'decode_head.conv_seg.bias': torch.ones(150)}}, tmp_path / 'segmentor.pth')
    report = load(net, tmp_path / 'segmentor.pth')
    assert not report.left and report.unexpected == ['decode_head.conv_seg.bias']
    assert all(torch.equal(net.state_dict()[name], v) for name, v in donor.state_dict().items())


@pytest.mark.parametrize('arch, problem', [
    ('M', "unknown arch 'M' of HorNet; there are T, T-GF, T-GF-384, S,"),
    (dict(depths=(1, ), base_dim=8), 'lacks gnconv'),
    (dict(SMALL, depths=(1, 1)), 'depths and gnconv must have one entry per stage, got 2 and 4'),
    (dict(SMALL, base_dim=0), 'base_dim must be positive integers'),
    (dict(SMALL, base_dim=6), 'order 4 needs channels that 16 divides, got 24'),
    (dict(SMALL, gnconv=(gn(5), gn(3), gn(4), gn(5))), 'order 5 needs channels that 16 divides, got 8'),
    (dict(SMALL, gnconv=(gn(0), gn(3), gn(4), gn(5))), 'order must be a positive integer, got 0'),
    (dict(SMALL, gnconv=(gn(2, h=7), gn(3), gn(4), gn(5))), 'h and w must both be positive integers or both be left'),
    (dict(SMALL, gnconv=(dict(order=2, scale=1), gn(3), gn(4), gn(5))), 'unknown keys in gnconv: scale'),
    (dict(SMALL, dims=8), 'unknown keys in arch of HorNet: dims'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        HorNet(arch)


def test_layer_ids_are_the_official_ones():
    # layer_decay_optimizer_constructor.py of the official repository
    net = on_meta('B-GF')
    expected = {'downsample_layers.0.0.weight': 0, 'stages.0.1.gamma1': 1, 'downsample_layers.1.0.bias': 2,
                'stages.1.2.norm1.weight': 2, 'downsample_layers.2.1.weight': 3,
                'stages.2.0.gnconv.proj_in.weight': 3, 'stages.2.1.pwconv1.weight': 3, 'stages.2.2.gamma2': 4,
                'stages.2.17.gnconv.dwconv.complex_weight': 11, 'downsample_layers.3.1.bias': 12,
                'stages.3.1.pwconv2.bias': 12, 'norm0.weight': 13, 'norm3.bias': 13}
    assert {name: net.layer_id(name) for name in expected} == expected
    assert net.num_layers == 12
