import numpy as np
import pytest
import torch

from mmlk.backbones import RepLKNet
from mmlk.backbones.replknet import ARCHS
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'RepLKNet': dict(large_kernel_sizes=(31, 29, 27, 13), layers=(1, 1, 2, 1), channels=(8, 16, 24, 32),
                     small_kernel=5),
}

SMALL = dict(layers=(1, 1, 2, 1), channels=(16, 32, 64, 128))
FORMS = {
    '31B': ('31B', (1, 3, 64, 96)),
    'XL_form': (dict(SMALL, large_kernel_sizes=(27, 27, 27, 13), small_kernel=None, dw_ratio=1.5,
                     norm_intermediate_features=True), (2, 3, 96, 64)),
    '31B_odd': (dict(SMALL, large_kernel_sizes=(31, 29, 27, 13), small_kernel=5), (1, 3, 117, 75)),
}


def parameters(arch, merged=False) -> int:
    with torch.device('meta'):
        return sum(p.numel() for p in RepLKNet(arch, merged=merged).parameters())


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, repo):
    fixture = np.load(repo / 'tests/data/replknet.npz')
    arch, shape = FORMS[form]
    net = fill(RepLKNet(arch)).eval()
    assert sum(p.numel() for p in net.parameters()) == fixture[f'{form}.parameters']
    with torch.no_grad():
        maps = net(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


@pytest.mark.parametrize('arch, training_form, merged_form', [
    ('31B', 79_864_168, 79_527_272), ('31L', 172_671_016, 172_165_672)])
def test_published_parameter_counts(arch, training_form, merged_form):
    width = ARCHS[arch]['channels'][-1]
    classifier = 2 * width + 1000 * width + 1000  # final norm and 1000-class head, which a backbone does not have
    assert parameters(arch) + classifier == training_form
    assert parameters(arch, merged=True) + classifier == merged_form


def test_xl_parameter_count():
    # 335,435,752 with the classifier, mmpretrain's metafile; ours has four output norms instead
    channels = ARCHS['XL']['channels']
    classifier = 2 * channels[-1] + 1000 * channels[-1] + 1000
    assert parameters('XL') - 2 * sum(channels) + classifier == 335_435_752


@pytest.mark.parametrize('arch', ARCHS)
def test_kernels_of_every_arch(arch):
    with torch.device('meta'):
        net = RepLKNet(arch)
    for stage, kernel, channels, layers in zip(net.stages, ARCHS[arch]['large_kernel_sizes'], ARCHS[arch]['channels'],
                                               (2, 2, 18, 2)):
        blocks = [b for b in stage.blocks if hasattr(b, 'large_kernel')]
        width = int(channels * ARCHS[arch].get('dw_ratio', 1))
        assert [tuple(b.large_kernel.lkb_origin.conv.weight.shape) for b in blocks] == [
            (width, 1, kernel, kernel)] * layers


@pytest.mark.parametrize('arch, problem', [
    ('31X', "unknown arch '31X' of RepLKNet; there are 31B, 31L"),
    (dict(SMALL), 'lacks large_kernel_sizes'),
    (dict(SMALL, large_kernel_sizes=(31, 29)), 'one entry per stage, got 2, 4 and 4'),
    (dict(SMALL, large_kernel_sizes=(31, 30, 27, 13)), 'odd and positive, got 30'),
    (dict(SMALL, large_kernel_sizes=(31, 29, 27, 3), small_kernel=5),
     'small_kernel 5 is larger than the large kernel 3'),
    (dict(SMALL, large_kernel_sizes=(31, 29, 27, 13), kernel=3), 'unknown keys in arch of RepLKNet: kernel'),
    (dict(layers=(1, ), channels=(8.0, ), large_kernel_sizes=(7, )), 'channels must be positive integers'),
    (dict(layers=(1, ), channels=(8, ), large_kernel_sizes=(7, ), dw_ratio=0), 'dw_ratio 0 leaves no channels'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        RepLKNet(arch)


def test_arch_may_come_as_another_type_only_with_a_message():
    with pytest.raises(TypeError, match='a name or a dict, got int'):
        RepLKNet(31)


def test_layer_ids_are_the_official_ones():
    with torch.device('meta'):
        net = RepLKNet('31B')
    # optim_factory.py of the official repository, 12 layers
    expected = {'stem.0.conv.weight': 0, 'stages.0.blocks.3.pw2.bn.bias': 1, 'transitions.0.1.conv.weight': 1,
                'stages.1.blocks.0.prelkb_bn.weight': 2, 'transitions.1.0.bn.weight': 2,
                'stages.2.blocks.0.pw1.conv.weight': 3, 'stages.2.blocks.4.large_kernel.lkb_origin.conv.weight': 4,
                'stages.2.blocks.35.pw2.conv.weight': 11, 'transitions.2.0.conv.weight': 11,
                'stages.3.blocks.3.pw1.conv.weight': 12}
    assert {name: net.layer_id(name) for name in expected} == expected
    assert net.num_layers == 12
