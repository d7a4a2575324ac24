import numpy as np
import pytest
import torch
from torch import nn

from mmlk.analysis.complexity import count
from mmlk.backbones.unireplknet import ARCHS, GRN, UniRepLKNet, UniRepLKNetBlock
from mmlk.reparam import merge
from mmlk.reparam.dilated import DilatedReparamBlock
from mmlk.weights import WeightsError, load
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'UniRepLKNet': dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), kernel_sizes=((3, ), (13, ), (17, 0), (7, ))),
}

SMALL = dict(depths=(1, 2, 4, 2), dims=(16, 24, 32, 48), kernel_sizes=((5, ), (0, 7), (9, 11, 15, 17), (13, 3)))
FORMS = {'T': ('T', False, (1, 3, 64, 32)), 'odd': (SMALL, False, (2, 3, 75, 107)),
         'deploy': (SMALL, True, (1, 3, 64, 48))}
# Parameters of the official classifiers, training and deploy form, and the README's FLOPs (G) by image size; its table
# of ImageNet-22K gives those at 384 for smaller images.
PUBLISHED = {
    'A': (4_649_060, 4_437_300, {224: '0.6'}),
    'F': (6_489_328, 6_235_216, {224: '0.9'}),
    'P': (11_080_520, 10_741_704, {224: '1.6'}),
    'N': (18_818_880, 18_318_560, {224: '2.8'}),
    'T': (31_693_420, 31_037_980, {224: '4.9'}),
    'S': (56_456_704, 55_645_984, {224: '9.1', 384: '26.7'}),
    'B': (99_089_416, 98_008_456, {384: '47.2'}),
    'L': (220_076_056, 218_454_616, {384: '105.4'}),
    'XL': (388_690_984, 386_529_064, {384: '187'}),
}


def on_meta(arch, merged=False) -> UniRepLKNet:
    with torch.device('meta'):
        return UniRepLKNet(arch, merged=merged)


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, repo):
    fixture = np.load(repo / 'tests/data/unireplknet.npz')
    arch, merged, shape = FORMS[form]
    net = fill(UniRepLKNet(arch, merged=merged)).eval()
    assert sum(p.numel() for p in net.parameters()) == fixture[f'{form}.parameters']
    with torch.no_grad():
        maps = net(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


@pytest.mark.parametrize('arch', ARCHS)
def test_published_parameters_and_flops(arch):
    # the classifiers have a norm and a 1000-class head in place of the norms on the outputs
    dims = ARCHS[arch]['dims']
    *parameters, flops = PUBLISHED[arch]
    for merged, classifier in zip((False, True), parameters):
        ours = sum(p.numel() for p in on_meta(arch, merged).parameters())
        assert ours - 2 * sum(dims) + 1002 * dims[-1] + 1000 == classifier
    for size, published in flops.items():
        counted = (count(on_meta(arch, merged=True), (size, size)).macs + 1000 * dims[-1]) / 1e9
        assert f"{counted:.{len(published.partition('.')[2])}f}" == published
        if float(published) >= 9:  # of the others 1 % is less than the last digit
            assert counted == pytest.approx(float(published), rel=0.01)


@pytest.mark.parametrize('arch', ARCHS)
def test_kernels_of_every_arch(arch):
    net = on_meta(arch)
    depths = ARCHS[arch]['depths']
    third = {6: [13] * 6, 8: [13] * 8, 18: [13, 3] * 9, 27: [13, 3, 3] * 9}[depths[2]]
    for stage, expected in zip(net.stages, ([3] * depths[0], [13] * depths[1], third, [13] * depths[3])):
        kernels = [b.dwconv.lk_origin if isinstance(b.dwconv, DilatedReparamBlock) else b.dwconv for b in stage]
        assert [conv.kernel_size[0] for conv in kernels] == expected


@pytest.mark.parametrize('layer_scale', [1e-6, 0])
def test_merged_form_is_equal(layer_scale):
    net = fill(UniRepLKNet(dict(SMALL, layer_scale_init_value=layer_scale))).double().eval()
    merged = merge(net)
    assert merged.merged and not net.merged and not any(isinstance(m, nn.BatchNorm2d) for m in merged.modules())
    built = UniRepLKNet(SMALL, merged=True).double().eval()
    built.load_state_dict(merge(merged).state_dict())
    assert all(torch.equal(value, merged.state_dict()[name]) for name, value in built.state_dict().items())
    x = image(2, 3, 75, 107).double()
    with torch.no_grad():
        for a, b, c in zip(net(x), merged(x), built(x)):
            assert relative_error(b, a) < 1e-10 and relative_error(c, b) < 1e-12


def test_a_token_mixer_may_be_merged_before_its_block():
    net = fill(UniRepLKNet(SMALL)).double()
    expected = merge(net).state_dict()
    for block in (net.stages[3][0], net.stages[1][1]):
        merge(block.dwconv, inplace=True)
    assert not net.merged
    assert all(relative_error(value, expected[name]) < 1e-14 for name, value in merge(net).state_dict().items())


def test_merging_keeps_what_is_frozen():
    merged = merge(UniRepLKNet(SMALL, frozen_stages=2))
    for name, p in merged.named_parameters():
        assert p.requires_grad is (merged.stage_id(name) > 2), name


@pytest.mark.parametrize('where', ['dwconv.origin_bn', 'norm', 'pwconv2.2'])
def test_a_norm_that_cannot_be_folded_is_refused(where):
    net = UniRepLKNet(SMALL)
    parent, _, child = f'stages.1.1.{where}'.rpartition('.')
    setattr(net.get_submodule(parent), child, nn.GroupNorm(4, 24))
    with pytest.raises(ValueError, match='GroupNorm is not a fixed affine map'):
        merge(net)


def test_grn_is_its_formula():
    grn = fill(GRN(6).double())
    x = image(2, 5, 4, 6).double()
    norm = (x**2).sum((1, 2)).sqrt()
    for n in range(2):
        for c in range(6):
            response = norm[n, c] / (norm[n].mean() + 1e-6)
            expected = x[n, ..., c] + grn.gamma[0, 0, 0, c] * response * x[n, ..., c] + grn.beta[0, 0, 0, c]
            assert relative_error(grn(x)[n, ..., c], expected) < 1e-14
    first = GRN(6, channels_first=True).double()  # the same for maps whose channels come first
    first.load_state_dict({name: value.permute(0, 3, 1, 2) for name, value in grn.state_dict().items()})
    assert relative_error(first(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), grn(x)) < 1e-14
    assert not GRN(6).gamma.any() and GRN(6, bias=False).beta is None


def test_grn_keeps_the_dtype_under_autocast():
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert GRN(4)(image(1, 3, 3, 4).bfloat16()).dtype == torch.bfloat16


def test_layer_scale():
    blocks = [m for m in UniRepLKNet(SMALL).modules() if isinstance(m, UniRepLKNetBlock)]
    assert len(blocks) == 9 and all(block.gamma.eq(1e-6).all() for block in blocks)
    ones, none = (fill(UniRepLKNet(dict(SMALL, layer_scale_init_value=v))).double().eval() for v in (1.0, 0))
    for block in ones.modules():
        if isinstance(block, UniRepLKNetBlock):
            block.gamma.data.fill_(1)
    x = image(1, 3, 64, 64).double()
    with torch.no_grad():
        assert all(relative_error(a, b) < 1e-12 for a, b in zip(ones(x), none(x)))


def test_only_blocks_take_norm_cfg():
    net = UniRepLKNet(SMALL, norm_cfg=dict(type='GN', num_groups=4))
    branches = sum(6 if k in (11, 13, 15, 17) else 5 if k == 9 else 4 if k == 7 else 0
                   for stage in SMALL['kernel_sizes'] for k in stage)
    # norm of each block but that without a token mixer, and the one at the end of each
    assert sum(isinstance(m, nn.GroupNorm) for m in net.modules()) == branches + 8 + 9
    norms = [m for m in net.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 5 + 4 and all(m.eps == 1e-6 for m in norms)


def test_initial_weights_are_the_official_distribution():
    torch.manual_seed(0)
    net = UniRepLKNet(SMALL)
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            assert m.bias is None or not m.bias.any()
    assert net.stages[3][0].pwconv1[1].weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize('merged', [False, True])
def test_official_files_load(merged, tmp_path):
    donor = fill(UniRepLKNet(SMALL, merged=merged))
    body = {name: v for name, v in donor.state_dict().items() if not name.startswith('norm')}
    head = {'norm.weight': torch.ones(48), 'norm.bias': torch.ones(48), 'head.weight': torch.ones(10, 48),
            'head.bias': torch.ones(10)}
    torch.save({'model': {**body, **head}}, tmp_path / 'classifier.pth')
    net = UniRepLKNet(SMALL, merged=merged)
    report = load(net, tmp_path / 'classifier.pth')
    assert report.unexpected == list(head)
    assert set(report.left) == {f'norm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias')}
    assert all(torch.equal(net.state_dict()[name], v) for name, v in body.items())

    whole = {f'backbone.{name}': v for name, v in donor.state_dict().items()}
    torch.save({'state_dict': {**whole, 'decode_head.conv_seg.bias': torch.ones(150)}}, tmp_path / 'segmentor.pth')
    report = load(net, tmp_path / 'segmentor.pth')
    assert not report.left and report.unexpected == ['decode_head.conv_seg.bias']
    assert all(torch.equal(net.state_dict()[name], v) for name, v in donor.state_dict().items())

    with pytest.raises(WeightsError, match='were not filled'):
        load(UniRepLKNet(SMALL, merged=not merged), tmp_path / 'segmentor.pth')


@pytest.mark.parametrize('arch, problem', [
    ('M', "unknown arch 'M' of UniRepLKNet; there are A, F, P, N, T, S, B, L, XL"),
    (dict(depths=(2, 2, 6, 2)), 'lacks dims'),
    (dict(depths=(2, 2, 6, 2), dims=(8, 8)), 'one entry per stage, got 4 and 2'),
    (dict(depths=(1, 1, 2, 1), dims=(8, 16, 32, 64)), r'depths \(1, 1, 2, 1\) need kernel_sizes, one per block'),
    (dict(SMALL, kernel_sizes=((5, ), (7, ), (9, 11, 15, 17), (13, 3))), r'one size per block, \(1, 2, 4, 2\), got'),
    (dict(SMALL, kernel_sizes=(3, 13, 13, 13)), r'a tuple per stage .*, got \(3, 13, 13, 13\)'),
    (dict(SMALL, kernel_sizes=((5, ), (0, 7), (9, 11, 15, 31), (13, 3))), 'may be 0, 3, 5, 7, .*, 17, got 31'),
    (dict(SMALL, dims=(2, 24, 32, 48)), 'dims must be at least 4'),
    (dict(SMALL, depth=3), 'unknown keys in arch of UniRepLKNet: depth'),
    (dict(SMALL, depths=(1, 1, 0, 1)), 'depths must be positive integers'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        UniRepLKNet(arch)


def test_the_official_constructors_dicts_are_the_named_archs():
    named, given = UniRepLKNet('A'), UniRepLKNet(dict(depths=[2, 2, 6, 2], dims=[40, 80, 160, 320], kernel_sizes=None))
    assert {name: v.shape for name, v in named.state_dict().items()} == {
        name: v.shape for name, v in given.state_dict().items()}


@pytest.mark.parametrize('arch, layers, in_third', [('T', 9, {0: 3, 2: 3, 3: 4, 17: 8}),
                                                    ('S', 12, {0: 3, 3: 4, 26: 11}), ('A', 5, {0: 3, 5: 4})])
def test_layer_ids_are_the_official_ones(arch, layers, in_third):
    # unireplknet_layer_decay_optimizer_constructor.py of the official repository with this num_layers
    net = on_meta(arch)
    expected = {'downsample_layers.0.3.weight': 0, 'stages.0.1.gamma': 1, 'downsample_layers.1.0.bias': 2,
                'stages.1.0.dwconv.dil_conv_k7_2.weight': 2, 'downsample_layers.2.1.weight': 3,
                **{f'stages.2.{block}.se.down.weight': layer for block, layer in in_third.items()},
                'downsample_layers.3.1.bias': layers, 'stages.3.1.pwconv2.2.bias': layers, 'norm0.weight': layers + 1,
                'norm3.bias': layers + 1}
    assert {name: net.layer_id(name) for name in expected} == expected
    assert net.num_layers == layers
