"""InternImage against the official implementation.

``tests/data/internimage.npz`` was made by ``segmentation/mmseg_custom/models/backbones/intern_image.py`` of
github.com/OpenGVLab/InternImage (MIT), torch 2.12.1, CPU, with ``DCNv3_pytorch`` as ``core_op`` and the imports of
mmcv, mmseg and the compiled operator stubbed: in eval mode, filled by ``fill(net)`` in float32, run in float64 on
``image(*shape)``; the maps of the ``FORMS``, saved as float32, and the numbers of parameters of the five archs on the
meta device. ``classifier``: ``classification/models/intern_image.py`` in the same way, every 8th of 1000 logits.
``dcnv3.*``: ``dcnv3_core_pytorch`` in float64 on the inputs of ``tests/ops/test_deformable.py``.
"""
import numpy as np
import pytest
import torch
from torch import nn

from mmlk.analysis.classifiers import with_head
from mmlk.analysis.complexity import breakdown, count
from mmlk.backbones.internimage import ARCHS, DCNv3, InternImage
from mmlk.deploy import formats
from mmlk.ops.deformable import multiply_adds
from mmlk.weights import WeightsError, load
from mmlk.weights.identify import identify
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {'InternImage': dict(channels=8, depths=(1, 1, 2, 1), groups=(1, 2, 2, 4), layer_scale=1.0)}

SMALL = dict(channels=8, depths=(1, 2, 3, 1), groups=(1, 2, 4, 4))
# norms after the layers, as in S, B, L and XL; and the form of H and G
POST = dict(SMALL, post_norm=True, layer_scale=0.5, offset_scale=2.0, mlp_ratio=3.0)
H = dict(SMALL, dw_kernel_size=5, res_post_norm=True, center_feature_scale=True, level2_post_norm=True,
         level2_post_norm_block_ids=[0, 2])
FORMS = {'T': ('T', (1, 3, 64, 32)), 'post': (POST, (2, 3, 75, 107)), 'H': (H, (1, 3, 49, 70))}
# of the official classifier: a 1x1 convolution, BatchNorm and a linear layer
HEAD = {'conv_head.0': nn.Conv2d(64, 96, 1, bias=False), 'conv_head.1.0': nn.BatchNorm2d(96),
        'head': nn.Linear(96, 1000)}


def on_meta(arch, **kwargs) -> InternImage:
    with torch.device('meta'):
        return InternImage(arch, **kwargs)


@pytest.fixture
def fixture(repo):
    with np.load(repo / 'tests/data/internimage.npz') as official:
        return dict(official)


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, fixture):
    arch, shape = FORMS[form]
    net = fill(InternImage(arch)).eval()
    assert sum(p.numel() for p in net.parameters()) == fixture[f'{form}.parameters']
    with torch.no_grad():
        maps = net(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


# Published: parameters in millions and FLOPs in billions, of the classifier, at 224 (T, S, B) or 384 pixels.
@pytest.mark.parametrize('arch, parameters, flops, side', [
    ('T', 30, 5, 224), ('S', 50, 8, 224), ('B', 97, 16, 224), ('L', 223, 108, 384), ('XL', 335, 163, 384)])
def test_published_parameters_and_flops(arch, parameters, flops, side, fixture):
    net = on_meta(arch)
    ours = count(net, (side, side))
    assert ours.parameters == fixture[f'{arch}.parameters']
    width = net.out_channels[-1]
    hidden = int(1.5 * width)
    head = width * hidden + 2 * hidden + 1001 * hidden - hidden
    assert (ours.parameters + head + 1000) / 1e6 == pytest.approx(parameters, abs=0.5)
    macs = ours.macs + width * hidden * (side // 32)**2 + 1000 * hidden
    assert macs / 1e9 == pytest.approx(flops, rel=0.01, abs=0.5)


def test_samples_are_counted_in_the_module_that_takes_them():
    net = on_meta(TINY['InternImage'])
    tree = breakdown(net, (64, 96))
    level = next(child for child in tree.children if child.name == 'levels').children[0]
    block = level.children[0].children[0]
    dcn = next(child for child in block.children if child.name == 'dcn')
    pixels = 16 * 24
    layers = pixels * (8 * 9 + 8 * 18 + 8 * 9 + 2 * 8 * 8)  # depthwise, offset, mask, two projections
    assert dcn.macs == layers + multiply_adds((1, 16, 24, 8), 9) == layers + pixels * 8 * 9 * 5
    assert sum(child.macs for child in dcn.children) == layers


def test_the_archs_are_the_official_ones():
    for name, depths, groups, post in (('T', (4, 4, 18, 4), 4, False), ('S', (4, 4, 21, 4), 5, True),
                                       ('B', (4, 4, 21, 4), 7, True), ('L', (5, 5, 22, 5), 10, True),
                                       ('XL', (5, 5, 24, 5), 12, True)):
        net = on_meta(name)
        assert tuple(len(level.blocks) for level in net.levels) == depths
        mixers = [m for m in net.modules() if isinstance(m, DCNv3)]
        assert [m.groups for m in mixers] == [groups * 2**i for i, n in enumerate(depths) for _ in range(n)]
        assert all(m.input_proj.in_features == 16 * m.groups for m in mixers), '16 channels in each group'
        assert {m.offset_scale for m in mixers} == {2.0 if 'L' in name else 1.0}
        assert all((level.norm is None) == post for level in net.levels)
        assert all(norm.eps == 1e-6 for norm in net.modules() if isinstance(norm, nn.LayerNorm))
    assert set(ARCHS) == {'T', 'S', 'B', 'L', 'XL'}


def test_norm_cfg_is_that_of_stem_downsampling_and_depthwise_convolutions():
    net = InternImage(SMALL, norm_cfg=dict(type='GN', num_groups=4))
    names = [name for name, module in net.named_modules() if isinstance(module, nn.GroupNorm)]
    blocks = sum(SMALL['depths'])
    assert sum('dw_conv' in name for name in names) == blocks and sum('downsample' in name for name in names) == 3
    assert len(names) == blocks + 3 + 2
    assert len([m for m in net.modules() if isinstance(m, nn.LayerNorm)]) == 2 * blocks + 4


def test_at_first_every_sample_lies_on_the_grid_and_weighs_as_much():
    torch.manual_seed(0)
    net = InternImage(dict(SMALL, channels=32))
    for mixer in (m for m in net.modules() if isinstance(m, DCNv3)):
        assert not any(t.any() for layer in (mixer.offset, mixer.mask) for t in layer.parameters())
        bound = (6 / (2 * mixer.input_proj.in_features))**0.5  # of xavier_uniform_
        assert 0.9 * bound < mixer.input_proj.weight.abs().max() <= bound
    fc = net.levels[3].blocks[0].mlp.fc1
    assert fc.weight.std().item() == pytest.approx(0.02, rel=0.05) and not fc.bias.any()


@pytest.mark.parametrize('autocast', [True, False])
def test_half_precision(autocast):
    net, x = fill(InternImage(POST)).eval(), image(1, 3, 75, 107)
    with torch.no_grad():
        expected = net(x)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            maps = net(x) if autocast else net.bfloat16()(x.bfloat16())
    for feature, theirs in zip(maps, expected):
        assert autocast or feature.dtype == torch.bfloat16
        assert relative_error(feature, theirs) < 0.05


def named(modules):
    holder = nn.Module()
    for path, module in modules.items():
        parent, *rest = path.split('.')
        for name in reversed(rest):
            child = nn.Module()
            child.add_module(name, module)
            module = child
        if hasattr(holder, parent):
            holder.get_submodule(parent).add_module(rest[0], module.get_submodule(rest[0]))
        else:
            holder.add_module(parent, module)
    return holder


def test_a_classifier_without_layer_scale_fills_one_of_ones(fixture, tmp_path):
    """T's file. Its network is that of a layer scale of 1, and of no other."""
    donor, head = fill(InternImage(SMALL)), fill(named(HEAD))
    path = str(tmp_path / 'classifier.pth')
    torch.save({'model': {**donor.state_dict(), **head.state_dict()}}, path)
    for arch in (SMALL, dict(SMALL, layer_scale=1.0)):
        net = InternImage(arch)
        report = load(net, path)
        assert set(report.left) == {name for name in net.state_dict() if 'gamma' in name}
        with torch.no_grad():
            logits = with_head(InternImage(arch), path).network(image(2, 3, 64, 64))
        assert relative_error(logits[:, ::8], torch.from_numpy(fixture['classifier'])) < 1e-5
    with pytest.raises(WeightsError, match='14 of the .* tensors of InternImage were not filled'):
        load(InternImage(dict(SMALL, layer_scale=0.5)), path)


def test_official_files_are_recognised():
    for arch in ('T', 'B'):
        file = {name: value for name, value in on_meta(arch).state_dict().items() if arch != 'T' or 'gamma' not in name}
        assert identify(file) == f'InternImage-{arch}'


def test_an_exported_program_takes_any_size(tmp_path):
    """Of a stage with one group of channels too, whose dimension of 1 torch.export cannot merge with unknown ones."""
    net, path = fill(InternImage(POST, out_indices=(0, 1))).eval(), str(tmp_path / 'net.pt2')
    formats.write_graph(formats.Graph(net, image(2, 3, 64, 64), 1, 'images', ['first', 'second'], {}), path,
                        'exported-program')
    run = formats.open_exported(path, 'exported-program')
    for shape in ((1, 3, 96, 96), (2, 3, 131, 98)):
        with torch.no_grad():
            expected = net(image(*shape))
        for out, theirs in zip(run(image(*shape)), expected, strict=True):
            assert relative_error(out, theirs) < 1e-5


def test_layer_ids_are_the_official_ones():
    net = on_meta('T')
    expected = {'patch_embed.conv1.weight': 0, 'patch_embed.norm2.1.bias': 0, 'levels.0.blocks.0.gamma1': 1,
                'levels.0.blocks.3.mlp.fc2.bias': 4, 'levels.0.norm.0.weight': 5, 'levels.0.downsample.conv.weight': 5,
                'levels.1.blocks.0.dcn.offset.weight': 5, 'levels.1.downsample.norm.1.bias': 9,
                'levels.2.blocks.17.dcn.dw_conv.1.1.weight': 26, 'levels.2.norm.0.bias': 27,
                'levels.3.blocks.0.norm1.0.weight': 27, 'levels.3.norm.0.weight': 27,
                'levels.3.blocks.3.norm2.0.bias': 30}
    assert {name: net.layer_id(name) for name in expected} == expected
    assert net.num_layers == 30 and {net.layer_id(name) for name, _ in net.named_parameters()} == set(range(31))
    assert [on_meta(arch).num_layers for arch in ('S', 'B', 'L', 'XL')] == [33, 33, 37, 39]


def test_the_downsampling_is_frozen_with_the_stage_after_it():
    net = InternImage(SMALL, frozen_stages=1)
    assert not any(p.requires_grad for p in net.levels[0].blocks.parameters())
    assert all(p.requires_grad for p in net.levels[0].downsample.parameters())
    net = InternImage(SMALL, frozen_stages=2)
    assert not any(p.requires_grad for p in net.levels[0].downsample.parameters())
    assert InternImage(SMALL, out_indices=(0, 1)).levels[1].downsample is None


@pytest.mark.parametrize('change, problem', [
    (dict(channels=9), 'channels must be even'),
    (dict(groups=(1, 2, 4, 5)), 'groups must divide the channels of their stage'),
    (dict(groups=(1, 2, 4)), 'depths and groups must have one entry per stage, got 4 and 3'),
    (dict(mlp_ratio=0), 'mlp_ratio must be a positive number, got 0'),
    (dict(offset_scale='2'), "offset_scale must be a positive number, got '2'"),
    (dict(layer_scale=-1.0), 'layer_scale must be a number of at least 0'),
    (dict(dw_kernel_size=4), 'dw_kernel_size must be None or odd and positive, got 4'),
    (dict(post_norm=1), 'post_norm must be True or False, got 1'),
    (dict(res_post_norm=True, layer_scale=1.0), 'res_post_norm excludes post_norm and layer_scale'),
    (dict(level2_post_norm=True), 'level2_post_norm needs level2_post_norm_block_ids'),
    (dict(level2_post_norm=True, level2_post_norm_block_ids=[3]), 'different indices of the 3 blocks'),
    (dict(level2_post_norm_block_ids=[1]), 'have an effect with level2_post_norm=True only'),
    (dict(core_op='DCNv3'), 'unknown keys in arch of InternImage: core_op'),
])
def test_wrong_archs_are_named(change, problem):
    with pytest.raises(ValueError, match=problem):
        InternImage({**SMALL, **change})
    with pytest.raises(ValueError, match="unknown arch 'H' of InternImage; there are T, S, B, L, XL"):
        InternImage('H')
