"""FlashInternImage against the official implementation.

``tests/data/flashinternimage.npz`` was made by ``segmentation/mmseg_custom/models/backbones/flash_intern_image.py`` and
``DCNv4_op/DCNv4/modules/dcnv4.py`` of github.com/OpenGVLab/DCNv4 (MIT), torch 2.12.1, CPU, as ``internimage.npz``. Its
operator is a CUDA extension; in its place stood ``dcnv3_core_pytorch`` of github.com/OpenGVLab/InternImage, of what its
kernel (``dcnv4_im2col_cuda.cuh``) reads as offsets and weights. A group of channels is a multiple of 16 there.
``classifier``: ``classification/models/flash_intern_image.py`` in the same way, every 8th of 1000 logits.
"""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlk.analysis.classifiers import with_head
from mmlk.analysis.complexity import breakdown
from mmlk.backbones.flashinternimage import ARCHS, DCNv4, FlashInternImage
from mmlk.ops.deformable import multiply_adds
from mmlk.registry import MODELS
from mmlk.weights import WeightsError, load
from mmlk.weights.identify import identify
from tests.backbones.test_internimage import named
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {'FlashInternImage': dict(channels=8, depths=(1, 1, 2, 1), groups=(1, 2, 2, 4), layer_scale=1.0,
                                 dw_kernel_size=3, mlp_fc2_bias=True)}

SMALL = dict(channels=16, depths=(1, 2, 2, 1), groups=(1, 2, 4, 8))
FORMS = {'pre': (dict(SMALL, layer_scale=1.0, offset_scale=1.0), (1, 3, 64, 48)),
         'post': (dict(SMALL, post_norm=True, layer_scale=0.5, offset_scale=2.0, dw_kernel_size=3, dcn_output_bias=True,
                       mlp_fc2_bias=True), (1, 3, 75, 107))}


def on_meta(arch) -> FlashInternImage:
    with torch.device('meta'):
        return FlashInternImage(arch)


@pytest.fixture
def fixture(repo):
    with np.load(repo / 'tests/data/flashinternimage.npz') as official:
        return dict(official)


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, fixture):
    arch, shape = FORMS[form]
    net = fill(FlashInternImage(arch)).eval()
    assert sum(p.numel() for p in net.parameters()) == fixture[f'{form}.parameters']
    with torch.no_grad():
        maps = net(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


# Published, in millions, of the classifier, which has a 1x1 convolution, a norm and a linear layer more.
@pytest.mark.parametrize('arch, parameters', [('T', 30), ('S', 50), ('B', 97), ('L', 223)])
def test_published_parameters(arch, parameters, fixture):
    net = on_meta(arch)
    ours = sum(p.numel() for p in net.parameters())
    assert ours == fixture[f'{arch}.parameters']
    hidden = int(1.5 * net.out_channels[-1])
    head = net.out_channels[-1] * hidden + 2 * hidden + 1000 * (hidden + 1)
    assert (ours + head) / 1e6 == pytest.approx(parameters, rel=0.01, abs=0.5)


def test_the_archs_are_the_official_ones():
    scales = {'T': 1.0, 'S': 1.0, 'B': 0.5, 'L': 2.0}
    assert set(ARCHS) == set(scales)
    for name, scale in scales.items():
        mixers = [m for m in on_meta(name).modules() if isinstance(m, DCNv4)]
        assert {m.offset_scale for m in mixers} == {scale}
        assert {m.dw_kernel_size for m in mixers} == {None if name == 'T' else 3}
        assert {m.output_proj.bias is not None for m in mixers} == {name == 'L'}
        assert all(m.value_proj.in_features == 16 * m.groups for m in mixers), '16 channels in each group'
        assert all(m.offset_mask.out_features % 8 == 0 for m in mixers)


def test_samples_are_counted():
    net, pixels, width = on_meta(dict(SMALL, depths=(1, 1, 1, 1))), 16 * 24, 16
    tree = breakdown(net, (64, 96))
    block = next(child for child in tree.children if child.name == 'levels').children[0].children[0].children[0]
    dcn = next(child for child in block.children if child.name == 'dcn')
    layers = pixels * width * (32 + 2 * width)  # 27 values of the only group, padded to 32, and two projections
    assert dcn.macs == layers + multiply_adds((1, 16, 24, width), 9) == layers + pixels * width * 9 * 5


def test_at_first_the_samples_lie_on_the_grid_and_weigh_nothing():
    torch.manual_seed(0)
    net = FlashInternImage(dict(SMALL, channels=32, dw_kernel_size=3, dcn_output_bias=True))
    for mixer in (m for m in net.modules() if isinstance(m, DCNv4)):
        assert not any(t.any() for t in mixer.offset_mask.parameters())
        bound = (6 / (2 * mixer.value_proj.in_features))**0.5  # of xavier_uniform_
        for layer in (mixer.value_proj, mixer.output_proj):
            assert 0.9 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()


def test_a_classifier_without_layer_scale_fills_one_of_ones(fixture, tmp_path):
    """T's file. Its network is that of a layer scale of 1, and of no other."""
    arch, path = dict(SMALL, offset_scale=1.0), str(tmp_path / 'classifier.pth')
    head = {'conv_head.0': nn.Conv2d(128, 192, 1, bias=False), 'conv_head.1.0': nn.BatchNorm2d(192),
            'head': nn.Linear(192, 1000)}
    torch.save({'model': {**fill(FlashInternImage(arch)).state_dict(), **fill(named(head)).state_dict()}}, path)
    net = with_head(FlashInternImage(dict(arch, layer_scale=1.0)), path).network
    with torch.no_grad():
        logits = net(image(2, 3, 64, 64))
    assert relative_error(logits[:, ::8], torch.from_numpy(fixture['classifier'])) < 1e-5
    with pytest.raises(WeightsError, match='12 of the .* tensors of FlashInternImage were not filled'):
        load(FlashInternImage(dict(arch, layer_scale=0.5)), path)


def test_layer_ids_are_those_of_internimage():
    net = on_meta('T')
    expected = {'patch_embed.conv1.weight': 0, 'levels.0.blocks.3.dcn.offset_mask.weight': 4,
                'levels.0.downsample.conv.weight': 5, 'levels.3.norm.0.weight': 27, 'levels.3.blocks.3.gamma2': 30}
    assert {name: net.layer_id(name) for name in expected} == expected and net.num_layers == 30


def test_official_files_are_recognised():
    for arch in ('T', 'B'):
        file = {name: value for name, value in on_meta(arch).state_dict().items() if arch != 'T' or 'gamma' not in name}
        assert identify(file) == f'FlashInternImage-{arch}'


def test_wrong_archs_are_named():
    with pytest.raises(ValueError, match='mlp_fc2_bias must be True or False'):
        FlashInternImage(dict(SMALL, mlp_fc2_bias=0))
    with pytest.raises(ValueError, match='center_feature_scale: the official FlashInternImage has none'):
        FlashInternImage(dict(SMALL, center_feature_scale=True))
    with pytest.raises(ValueError, match="unknown arch 'XL' of FlashInternImage; there are T, S, B, L"):
        FlashInternImage('XL')


def test_the_neck_of_the_detectors_is_the_official_one():
    """FPN with a LayerNorm over the channels after each convolution, which has no bias then."""
    neck = fill(MODELS.build(dict(type='mmdet.FPN', in_channels=[8, 16], out_channels=12, num_outs=3,
                                  norm_cfg=dict(type='mmlk.ChannelNorm')))).eval()
    weights = neck.state_dict()
    assert set(weights) == {f'{kind}_convs.{i}.{part}' for kind in ('lateral', 'fpn') for i in (0, 1)
                            for part in ('conv.weight', 'ln.weight', 'ln.bias')}

    def conv(kind, i, x):
        weight, *norm = (weights[f'{kind}_convs.{i}.{part}'] for part in ('conv.weight', 'ln.weight', 'ln.bias'))
        out = F.conv2d(x, weight, padding=weight.shape[-1] // 2).permute(0, 2, 3, 1)
        return F.layer_norm(out, (12, ), *norm, eps=1e-5).permute(0, 3, 1, 2)

    maps = image(1, 8, 10, 14), image(1, 16, 5, 7, seed=1)
    far = conv('lateral', 1, maps[1])
    near = conv('lateral', 0, maps[0]) + far.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = conv('fpn', 0, near), conv('fpn', 1, far)
    with torch.no_grad():
        outs = neck(maps)
    for ours, theirs in zip(outs, (*expected, expected[1][..., ::2, ::2]), strict=True):
        assert relative_error(ours, theirs) < 1e-5
