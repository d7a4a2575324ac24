"""VAN, against the official code of its dense prediction.

``tests/data/van.npz``: ``van.py`` of github.com/Visual-Attention-Network/VAN-Segmentation (Apache-2.0) at 8285fc7,
torch 2.12.1, CPU, its imports of mmcv 1.x stubbed. ``VAN(norm_cfg=dict(type='BN'), **arch)`` in eval mode, filled by
``fill(net)`` in float32, run in float64 on ``image(*shape)``; the four maps of each of ``FORMS``, saved as float32, and
the number of parameters.
"""
import numpy as np
import pytest
import torch
from torch import nn

from mmlk.analysis.complexity import count
from mmlk.backbones.van import ARCHS, VAN, Block
from mmlk.deploy import fused, optimize
from mmlk.ops import DepthwiseConv2d
from mmlk.weights import WeightsError, load
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'VAN': dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), mlp_ratios=(4, 4, 2, 2)),
}

SMALL = dict(embed_dims=(16, 24, 32, 48), depths=(1, 2, 3, 1), mlp_ratios=(8, 8, 4, 4))
FORMS = {'B0': ('B0', (1, 3, 64, 96)), 'odd': (SMALL, (2, 3, 75, 107))}


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, repo):
    fixture = np.load(repo / 'tests/data/van.npz')
    arch, shape = FORMS[form]
    net = fill(VAN(arch)).eval()
    assert sum(p.numel() for p in net.parameters()) == fixture[f'{form}.parameters']
    with torch.no_grad():
        maps = net(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


# parameters of the official classifiers, van.py of VAN-Classification; multiply-adds of the paper, table 5, with one
# decimal: 38.4G of B6 there, 38.9G in table 8
@pytest.mark.parametrize('arch, classifier, published', [
    ('B0', 4_105_800, 0.9), ('B1', 13_861_800, 2.5), ('B2', 26_578_472, 5.0), ('B3', 44_765_608, 9.0),
    ('B4', 60_283_176, 12.2), ('B5', 89_967_688, 17.2), ('B6', 199_829_416, 38.9)])
def test_published_counts(arch, classifier, published):
    with torch.device('meta'):
        counted = count(VAN(arch), (224, 224))
    last = ARCHS[arch]['embed_dims'][-1]
    assert counted.parameters + 1000 * last + 1000 == classifier
    assert (counted.macs + 1000 * last) / 1e9 == pytest.approx(published, abs=max(0.05, 0.01 * published))


def test_the_convolutions_of_the_attention():
    with torch.device('meta'):
        net = VAN('B2')
    for stage, channels in enumerate(ARCHS['B2']['embed_dims'], 1):
        unit = net._modules[f'block{stage}'][0].attn.spatial_gating_unit
        convs = unit.conv0, unit.conv_spatial, unit.conv1
        assert [(c.groups, c.kernel_size[0], c.dilation[0], c.padding[0]) for c in convs] == [
            (channels, 5, 1, 2), (channels, 7, 3, 9), (1, 1, 1, 0)]
    assert sum(type(m) is DepthwiseConv2d for m in net.modules()) == 2 * 21  # all but the dilated ones, in 21 blocks


def test_layer_scale():
    blocks = [b for b in VAN(SMALL).modules() if isinstance(b, Block)]
    assert len(blocks) == 7 and all(b.layer_scale_1.eq(0.01).all() and b.layer_scale_2.eq(0.01).all() for b in blocks)


def test_the_norm_of_a_stage_is_on_the_way_to_the_next():
    net = fill(VAN(SMALL)).eval()
    assert all(net._modules[f'norm{i}'].eps == 1e-5 for i in (1, 2, 3, 4))
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        before = net(x)
        net.norm1.bias.add_(1)
        after = net(x)
    assert all(relative_error(a, b) > 1e-3 for a, b in zip(after, before))


def test_initial_weights_are_the_official_distribution():
    torch.manual_seed(0)
    net = VAN('B0')
    for conv in (net.patch_embed4.proj, net.block4[0].attn.spatial_gating_unit.conv_spatial, net.block4[0].mlp.fc1):
        fan_out = conv.kernel_size[0]**2 * conv.out_channels // conv.groups
        assert conv.weight.std().item() == pytest.approx((2 / fan_out)**0.5, rel=0.05)
    assert not any(m.bias.any() for m in net.modules() if isinstance(m, nn.Conv2d))


def mmpretrain_name(name):
    """Of a tensor of VAN in mmpretrain."""
    for ours, theirs in (('.proj.', '.projection.'), ('dwconv.dwconv', 'dwconv'), ('conv0', 'DW_conv'),
                         ('conv_spatial', 'DW_D_conv')):
        name = name.replace(ours, theirs)
    return name.replace('block', 'blocks')


def test_official_files_and_those_of_mmpretrain_load(tmp_path):
    donor, net = fill(VAN(SMALL)), VAN(SMALL)
    head = {'head.weight': torch.ones(10, 48), 'head.bias': torch.ones(10)}
    torch.save({'state_dict': {**donor.state_dict(), **head}}, tmp_path / 'official.pth.tar')
    theirs = {f'backbone.{mmpretrain_name(name)}': value for name, value in donor.state_dict().items()}
    torch.save({'state_dict': {**theirs, 'head.fc.weight': torch.ones(10, 48)}}, tmp_path / 'mmpretrain.pth')
    torch.save({'state_dict': {f'backbone.{name}': value for name, value in donor.state_dict().items()
                               if not name.startswith('norm1')}}, tmp_path / 'lacking.pth')
    for path, left_out in (('official.pth.tar', list(head)), ('mmpretrain.pth', ['head.fc.weight'])):
        net = VAN(SMALL)
        report = load(net, tmp_path / path)
        assert report.unexpected == left_out and not report.left
        assert all(torch.equal(net.state_dict()[name], value) for name, value in donor.state_dict().items())
    assert "mmpretrain's VAN" in report.format
    with pytest.raises(WeightsError, match='norm1.weight'):
        load(net, tmp_path / 'lacking.pth')


def test_each_block_is_a_layer():
    with torch.device('meta'):
        net = VAN('B0')  # of 3, 3, 5 and 2 blocks
    expected = {'patch_embed1.proj.weight': 0, 'block1.0.attn.proj_1.weight': 1, 'block1.2.mlp.fc2.bias': 3,
                'norm1.weight': 3, 'patch_embed2.norm.bias': 4, 'block2.0.layer_scale_1': 4, 'norm2.bias': 6,
                'block3.4.norm1.weight': 11, 'patch_embed4.proj.bias': 12, 'block4.1.mlp.dwconv.dwconv.weight': 13,
                'norm4.weight': 13}
    assert {name: net.layer_id(name) for name in expected} == expected
    assert net.num_layers == 13 and not net.no_weight_decay()  # layer scale is a vector, which decays nowhere


@pytest.mark.skipif(not fused.available(torch.float32), reason='no packed convolutions in this PyTorch')
def test_optimized_blocks():
    """What follows a convolution is computed in it: GELU, layer scale of the MLP and its sum with the shortcut."""
    fast = optimize(fill(VAN(TINY['VAN'])).eval(), image(1, 3, 64, 64))
    done, blocks = fast.optimization, 5
    assert done.step == 1 and done.fused['activations'] == 2 * blocks and done.fused['scales'] == blocks
    assert done.fused['sums'] == 2 * blocks and done.fused['depthwise convolutions'] == 0


@pytest.mark.parametrize('arch, problem', [
    ('B7', "unknown arch 'B7' of VAN; there are B0, B1, B2, B3, B4, B5, B6, or pass a dict"),
    (dict(embed_dims=(16, ), depths=(1, )), 'arch of VAN lacks mlp_ratios'),
    (dict(SMALL, depths=(1, 1)), 'one entry per stage, got 4, 2 and 4'),
    (dict(SMALL, depths=(1, 1, 0, 1)), 'depths must be positive integers'),
    (dict(SMALL, mlp_ratios=(8, 8, 4, 0)), r'mlp_ratios \(8, 8, 4, 0\) leave no channels'),
    (dict(SMALL, ffn_ratios=(8, 8, 4, 4)), 'unknown keys in arch of VAN: ffn_ratios'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        VAN(arch)
