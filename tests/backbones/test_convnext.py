import numpy as np
import pytest
import torch
from torch import nn

from mmlk.backbones.convnext import ARCHS, Block, ConvNeXt
from mmlk.reparam import merge
from mmlk.weights import load
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'ConvNeXt': dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), kernel_sizes=(31, 29, 27, 13), small_kernel=5),
}

SMALL = dict(depths=(1, 2, 4, 1), dims=(16, 24, 32, 48))
LARGE = dict(SMALL, kernel_sizes=(31, 29, 27, 13), small_kernel=5)
FORMS = {'T': ('T', (1, 3, 64, 32)), 'odd': (SMALL, (2, 3, 75, 107))}


def parameters(arch, merged=False) -> int:
    with torch.device('meta'):
        return sum(p.numel() for p in ConvNeXt(arch, merged=merged).parameters())


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, repo):
    fixture = np.load(repo / 'tests/data/convnext.npz')
    arch, shape = FORMS[form]
    net = fill(ConvNeXt(arch)).eval()
    assert sum(p.numel() for p in net.parameters()) == fixture[f'{form}.parameters']
    with torch.no_grad():
        maps = net(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


@pytest.mark.parametrize('arch, classifier', [
    ('T', 28_589_128), ('S', 50_223_688), ('B', 88_591_464), ('L', 197_767_336), ('XL', 350_196_968)])
def test_published_parameter_counts(arch, classifier):
    # of the official classifiers: a norm and a 1000-class head in place of the norms on the outputs
    dims = ARCHS[arch]['dims']
    assert parameters(arch) - 2 * sum(dims) + 1002 * dims[-1] + 1000 == classifier


@pytest.mark.parametrize('arch, more', [('T', 3_345_408), ('S', 8_045_568)])
def test_very_large_kernels_add_the_published_parameters(arch, more):
    # RepLKNet's appendix, under UperNet: 60M to 64M and 82M to 90M
    assert parameters(f'{arch}-31', merged=True) - parameters(arch) == more


@pytest.mark.parametrize('arch', ARCHS)
def test_kernels_of_every_arch(arch):
    with torch.device('meta'):
        net = ConvNeXt(arch)
    kernels = (31, 29, 27, 13) if arch.endswith('-31') else (7, 7, 7, 7)
    for stage, kernel, depth, channels in zip(net.stages, kernels, ARCHS[arch]['depths'], ARCHS[arch]['dims']):
        shapes = [tuple((b.large_kernel.lkb_origin.conv if arch.endswith('-31') else b.dwconv).weight.shape)
                  for b in stage]
        assert shapes == [(channels, 1, kernel, kernel)] * depth
        if arch.endswith('-31'):
            assert all(b.large_kernel.small_conv.conv.kernel_size == (5, 5) for b in stage)


def test_merged_large_kernels_are_a_plain_network():
    net = fill(ConvNeXt(LARGE)).double().eval()
    plain = ConvNeXt(dict(LARGE, small_kernel=None)).double().eval()
    plain.load_state_dict({name.replace('large_kernel.lkb_reparam', 'dwconv'): value
                           for name, value in merge(net).state_dict().items()})
    x = image(2, 3, 75, 107).double()
    with torch.no_grad():
        for a, b in zip(plain(x), net(x)):
            assert relative_error(a, b) < 1e-12


def test_the_small_kernel_and_its_statistics_matter():
    net = fill(ConvNeXt(LARGE)).eval()
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        before = net(x)[0]
        net.stages[0][0].large_kernel.small_conv.bn.running_mean.add_(1)
        assert relative_error(net(x)[0], before) > 1e-3


@pytest.mark.parametrize('arch', [SMALL, LARGE])
def test_only_branches_take_norm_cfg(arch):
    net = ConvNeXt(arch, norm_cfg=dict(type='GN', num_groups=4))
    branches = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert len(branches) == (2 * sum(SMALL['depths']) if arch is LARGE else 0)
    norms = [m for m in net.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == sum(SMALL['depths']) + 4 + 4 and all(m.eps == 1e-6 for m in norms)


def test_layer_scale():
    assert all(b.gamma.eq(1e-6).all() for b in ConvNeXt(SMALL).modules() if isinstance(b, Block))
    ones, none = (ConvNeXt(dict(SMALL, layer_scale_init_value=v)) for v in (1.0, 0))
    none.load_state_dict({name: v for name, v in ones.state_dict().items() if not name.endswith('gamma')})
    x = image(1, 3, 64, 64)
    for a, b in zip(ones(x), none(x)):
        assert torch.equal(a, b)


def test_initial_weights_are_the_official_distribution():
    torch.manual_seed(0)
    net = ConvNeXt(SMALL)
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            assert not m.bias.any()
    assert net.stages[3][0].pwconv1.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_plain_form_learns_everywhere_and_is_merged_already():
    net = fill(ConvNeXt(SMALL))
    assert net.merged
    sum((m**2).sum() for m in net(image(2, 3, 64, 64))).backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_official_files_load(tmp_path):
    donor = fill(ConvNeXt(SMALL))
    body = {name: v for name, v in donor.state_dict().items() if not name.startswith('norm')}
    head = {'norm.weight': torch.ones(48), 'norm.bias': torch.ones(48), 'head.weight': torch.ones(10, 48),
            'head.bias': torch.ones(10)}
    torch.save({'model': {**body, **head}}, tmp_path / 'classifier.pth')
    net = ConvNeXt(SMALL)
    report = load(net, tmp_path / 'classifier.pth')
    assert report.unexpected == list(head)
    assert set(report.left) == {f'norm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias')}
    assert all(torch.equal(net.state_dict()[name], v) for name, v in body.items())

    whole = {f'backbone.{name}': v for name, v in donor.state_dict().items()}
    torch.save({'state_dict': {**whole, 'decode_head.conv_seg.bias': torch.ones(150)}}, tmp_path / 'segmentor.pth')
    report = load(net, tmp_path / 'segmentor.pth')
    assert not report.left and report.unexpected == ['decode_head.conv_seg.bias']
    assert all(torch.equal(net.state_dict()[name], v) for name, v in donor.state_dict().items())


@pytest.mark.parametrize('arch, problem', [
    ('M', "unknown arch 'M' of ConvNeXt; there are T, S, B, L, XL, T-31, S-31"),
    (dict(depths=(1, )), 'lacks dims'),
    (dict(SMALL, kernel_sizes=(7, 7)), 'one entry per stage, got 2, 4 and 4'),
    (dict(SMALL, kernel_sizes=(7, 7, 8, 7)), 'odd and positive, got 8'),
    (dict(SMALL, small_kernel=9), 'small_kernel 9 is larger than the large kernel 7'),
    (dict(SMALL, depth=3), 'unknown keys in arch of ConvNeXt: depth'),
    (dict(SMALL, depths=(1, 1, 0, 1)), 'depths must be positive integers'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        ConvNeXt(arch)


@pytest.mark.parametrize('arch, layers, in_third', [('T', 6, {0: 3, 2: 3, 3: 4, 8: 5}),
                                                    ('S-31', 12, {0: 3, 3: 4, 26: 11})])
def test_layer_ids_are_the_official_ones(arch, layers, in_third):
    # layer_decay_optimizer_constructor.py of the official repository
    with torch.device('meta'):
        net = ConvNeXt(arch)
    expected = {'downsample_layers.0.0.weight': 0, 'stages.0.2.gamma': 1, 'downsample_layers.1.0.bias': 2,
                'stages.1.0.norm.weight': 2, 'downsample_layers.2.1.weight': 3,
                **{f'stages.2.{block}.pwconv1.weight': layer for block, layer in in_third.items()},
                'downsample_layers.3.1.bias': layers, 'stages.3.0.pwconv2.bias': layers, 'norm0.weight': layers + 1,
                'norm3.bias': layers + 1}
    assert {name: net.layer_id(name) for name in expected} == expected
    assert net.num_layers == layers
