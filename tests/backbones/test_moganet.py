import numpy as np
import pytest
import torch
from torch import nn

from mmlk.analysis.complexity import count
from mmlk.backbones.moganet import ARCHS, MogaBlock, MogaNet
from mmlk.ops import DepthwiseConv2d
from mmlk.weights import WeightsError, load
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'MogaNet': dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), ffn_ratios=(8, 8, 4, 4)),
}

SMALL = dict(embed_dims=(16, 24, 32, 48), depths=(1, 2, 3, 1), ffn_ratios=(8, 8, 4, 4))
FORMS = {
    'XT': ('XT', (1, 3, 64, 96)),
    'odd': (SMALL, (2, 3, 75, 107)),
    'split': (dict(SMALL, attn_dw_dilation=(2, 1, 3), attn_channel_split=(2, 2, 4)), (1, 3, 33, 64)),
}


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, repo):
    fixture = np.load(repo / 'tests/data/moganet.npz')
    arch, shape = FORMS[form]
    net = fill(MogaNet(arch)).eval()
    with torch.no_grad():
        maps = net(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


# Parameters of the official classifiers, with 1000 classes and no norm beside the backbone's; multiply-adds of their
# README, whose tool counts norms and pooling too, which weighs on the small ones. Its parameters are not always the
# code's: XT 2.97M, B 43.9M, XL 180.8M.
@pytest.mark.parametrize('arch, classifier, published, tolerance', [
    ('XT', 2_956_066, 0.80e9, 0.025), ('T', 5_197_332, 1.10e9, 0.02), ('S', 25_335_675, 4.97e9, 0.01),
    ('B', 43_720_475, 9.93e9, 0.01), ('L', 82_480_978, 15.9e9, 0.01), ('XL', 180_991_924, 34.5e9, 0.01)])
def test_published_counts(arch, classifier, published, tolerance):
    with torch.device('meta'):
        counted = count(MogaNet(arch), (224, 224))
    last = ARCHS[arch]['embed_dims'][-1]
    assert counted.parameters + 1000 * last + 1000 == classifier
    assert counted.macs + 1000 * last == pytest.approx(published, rel=tolerance)


def test_depthwise_convolutions():
    with torch.device('meta'):
        net = MogaNet('B')
    for stage, channels in enumerate(ARCHS['B']['embed_dims'], 1):
        value = net._modules[f'blocks{stage}'][0].attn.value
        convs = value.DW_conv0, value.DW_conv1, value.DW_conv2
        assert [(c.groups, c.kernel_size[0], c.dilation[0], c.padding[0]) for c in convs] == [
            (channels, 5, 1, 2), (channels * 3 // 8, 5, 2, 4), (channels // 2, 7, 3, 9)]
        assert type(value.DW_conv0) is DepthwiseConv2d


def test_layer_scale():
    blocks = [b for b in MogaNet(dict(SMALL, init_value=0.5)).modules() if isinstance(b, MogaBlock)]
    assert len(blocks) == 7 and all(b.layer_scale_1.eq(0.5).all() and b.layer_scale_2.eq(0.5).all() for b in blocks)
    assert all(b.attn.sigma.scale.eq(1e-5).all() and b.mlp.sigma.scale.eq(1e-5).all() for b in blocks)


def test_the_norm_of_a_stage_is_on_the_way_to_the_next():
    net = fill(MogaNet(SMALL)).eval()
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        before = net(x)
        net.norm1.bias.add_(1)
        after = net(x)
    assert all(relative_error(a, b) > 1e-3 for a, b in zip(after, before))


def test_there_is_nothing_to_merge():
    assert MogaNet(SMALL).merged and MogaNet(SMALL, merged=True).merged


def test_initial_weights_are_the_official_distribution():
    torch.manual_seed(0)
    net = MogaNet('T')
    for conv in (net.patch_embed4.projection, net.blocks4[0].attn.value.DW_conv2, net.blocks4[0].mlp.fc1):
        fan_out = conv.kernel_size[0]**2 * conv.out_channels // conv.groups
        assert conv.weight.std().item() == pytest.approx((2 / fan_out)**0.5, rel=0.05)
    assert not any(m.bias.any() for m in net.modules() if isinstance(m, nn.Conv2d))


def test_official_files_load(tmp_path):
    donor = fill(MogaNet(SMALL))
    head = {'head.weight': torch.ones(10, 48), 'head.bias': torch.ones(10)}
    torch.save({'state_dict': {**donor.state_dict(), **head}, 'arch': 'moganet_tiny', 'metric': 79.0},
               tmp_path / 'classifier.pth.tar')
    net = MogaNet(SMALL)
    report = load(net, tmp_path / 'classifier.pth.tar')
    assert report.unexpected == list(head) and not report.left
    assert all(torch.equal(net.state_dict()[name], value) for name, value in donor.state_dict().items())

    whole = {f'backbone.{name}': value for name, value in donor.state_dict().items()}
    torch.save({'state_dict': {**whole, 'decode_head.conv_seg.bias': torch.ones(150)}}, tmp_path / 'segmentor.pth')
    report = load(net, tmp_path / 'segmentor.pth')
    assert report.unexpected == ['decode_head.conv_seg.bias']
    torch.save({name: value for name, value in donor.state_dict().items() if not name.startswith('norm1')},
               tmp_path / 'lacking.pth')
    with pytest.raises(WeightsError, match='norm1.weight'):
        load(net, tmp_path / 'lacking.pth')


def test_layer_ids_are_the_official_ones():
    # get_num_layer_layer_wise of layer_decay_optimizer_constructor.py, num_layers=12
    with torch.device('meta'):
        net = MogaNet('B')
    expected = {'patch_embed1.projection.0.weight': 0, 'blocks1.3.attn.gate.weight': 2, 'patch_embed2.norm.bias': 3,
                'blocks2.0.mlp.sigma.scale': 3, 'patch_embed3.projection.weight': 4, 'blocks3.0.layer_scale_1': 3,
                'blocks3.5.norm1.weight': 5, 'blocks3.15.norm1.weight': 10, 'blocks3.21.norm1.weight': 11,
                'patch_embed4.norm.weight': 12, 'blocks4.2.mlp.fc2.bias': 12, 'norm1.weight': 13, 'norm4.bias': 13}
    assert {name: net.layer_id(name) for name in expected} == expected
    assert net.num_layers == 12


@pytest.mark.parametrize('arch, problem', [
    ('M', "unknown arch 'M' of MogaNet; there are XT, T, S, B, L, XL"),
    (dict(embed_dims=(16, ), depths=(1, )), 'lacks ffn_ratios'),
    (dict(SMALL, depths=(1, 1)), 'one entry per stage, got 4, 2 and 4'),
    (dict(SMALL, depths=(1, 1, 0, 1)), 'depths must be positive integers'),
    (dict(SMALL, embed_dims=(16, 20, 32, 48)), 'embed_dims must be multiples of 8, the sum of attn_channel_split'),
    (dict(SMALL, attn_dw_dilation=(1, 2)), 'attn_dw_dilation must have 3 entries'),
    (dict(SMALL, attn_channel_split=(1, 0, 3)), 'attn_channel_split must be positive integers'),
    (dict(SMALL, ffn_ratios=(8, 8, 4, 0)), 'leave no channels'),
    (dict(SMALL, width=3), 'unknown keys in arch of MogaNet: width'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        MogaNet(arch)
