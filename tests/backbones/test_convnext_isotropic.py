"""``tests/data/convnext_isotropic.npz`` was made by ``models/convnext_isotropic.py`` of
github.com/facebookresearch/ConvNeXt (048efce, MIT), torch 2.12.1, CPU, with timm's old names stubbed:
``ConvNeXtIsotropic`` with 1000 classes in eval mode, filled by ``fill(net)`` in float32, run in float64 on
``image(*shape)`` of ``FORMS``. It has the outputs of the blocks at a quarter, a half, three quarters and the end of the
depth and every 8th logit as float32, and the number of parameters.
"""
import numpy as np
import pytest
import torch
from torch import nn

from mmlk.analysis.classifiers import with_head
from mmlk.analysis.complexity import count
from mmlk.backbones.convnext_isotropic import ARCHS, ConvNeXtIsotropic
from mmlk.weights import WeightsError, load
from tests.backbones.test_convnextv2 import official_file, without_output_norms
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'ConvNeXtIsotropic': dict(depth=5, dim=16, layer_scale_init_value=1e-6),
}

SMALL = dict(depth=6, dim=24, layer_scale_init_value=1e-6)
FORMS = {'S': ('S', (1, 3, 64, 48)), 'odd': (SMALL, (2, 3, 75, 107))}


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, repo, tmp_path):
    fixture = np.load(repo / 'tests/data/convnext_isotropic.npz')
    arch, shape = FORMS[form]
    donor = fill(ConvNeXtIsotropic(arch)).eval()
    path = official_file(tmp_path / 'x.pth', donor, donor.out_channels[-1])
    classifier = with_head(ConvNeXtIsotropic(arch), path)
    assert sum(p.numel() for p in classifier.parameters()) == fixture[f'{form}.parameters']
    with torch.no_grad():
        maps = without_output_norms(donor)(image(*shape))
        logits = classifier.network(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5
    assert relative_error(logits[:, ::8], torch.from_numpy(fixture[f'{form}.logits'])) < 1e-5


# parameters of the official constructors with 1000 classes; multiply-adds of table 2 of the paper
@pytest.mark.parametrize('arch, classifier, published', [
    ('S', 22_308_712, 4.3e9), ('B', 87_083_752, 16.9e9), ('L', 305_942_504, 59.7e9)])
def test_published_counts(arch, classifier, published):
    with torch.device('meta'):
        counted = count(ConvNeXtIsotropic(arch), (224, 224))
    dim = ARCHS[arch]['dim']
    assert counted.parameters - 8 * dim + 1002 * dim + 1000 == classifier
    assert counted.macs + 1000 * dim == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize('arch, scaled', [('S', False), ('B', False), ('L', True)])
def test_only_the_large_one_has_layer_scale(arch, scaled):
    with torch.device('meta'):
        assert all((block.gamma is not None) == scaled for block in ConvNeXtIsotropic(arch).blocks)


def test_maps_are_those_after_each_quarter_of_the_blocks():
    net = without_output_norms(fill(ConvNeXtIsotropic(SMALL)).eval())
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        maps, out = net(x), net.stem(x)
        for i, block in enumerate(net.blocks):
            out = block(out)
            if i + 1 in (1, 3, 4, 6):
                assert relative_error(maps[(1, 3, 4, 6).index(i + 1)], out) < 1e-6
    assert len(ConvNeXtIsotropic(SMALL, out_indices=(1, )).blocks) == 3


def test_stages_and_layers():
    net = ConvNeXtIsotropic(SMALL, out_indices=(1, 3))
    expected = {'stem.weight': (0, 0), 'blocks.0.gamma': (1, 1), 'blocks.1.norm.bias': (2, 2),
                'blocks.2.dwconv.weight': (3, 2), 'blocks.3.gamma': (4, 3), 'blocks.5.pwconv2.bias': (6, 4),
                'norm1.weight': (7, 2), 'norm3.bias': (7, 4)}
    assert {name: (net.layer_id(name), net.stage_id(name)) for name in expected} == expected
    assert net.num_layers == 6


def test_a_deeper_file_is_refused_and_blocks_after_the_last_map_are_left_out(tmp_path):
    deeper = fill(ConvNeXtIsotropic(dict(SMALL, depth=8)))
    torch.save(deeper.state_dict(), tmp_path / 'deeper.pth')
    with pytest.raises(WeightsError, match='blocks.6'):
        load(ConvNeXtIsotropic(SMALL), tmp_path / 'deeper.pth')
    torch.save(fill(ConvNeXtIsotropic(SMALL)).state_dict(), tmp_path / 'whole.pth')
    assert load(ConvNeXtIsotropic(SMALL, out_indices=(0, )), tmp_path / 'whole.pth').complete
    with pytest.raises(WeightsError, match='blocks.6'):
        load(ConvNeXtIsotropic(SMALL, out_indices=(0, )), tmp_path / 'deeper.pth')


def test_norm_cfg_is_that_of_the_output_norms():
    net = ConvNeXtIsotropic(SMALL, norm_cfg=dict(type='GN', num_groups=4))
    assert [name for name, m in net.named_modules() if isinstance(m, nn.GroupNorm)] == [f'norm{i}' for i in range(4)]


@pytest.mark.parametrize('arch, problem', [
    ('T', "unknown arch 'T' of ConvNeXtIsotropic; there are S, B, L"),
    (dict(SMALL, depth=3), 'depth must be at least 4'),
    (dict(SMALL, dim=0), 'dim must be positive integers'),
    (dict(depth=4), 'lacks dim'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        ConvNeXtIsotropic(arch)
