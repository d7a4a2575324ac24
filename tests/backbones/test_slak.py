import numpy as np
import pytest
import torch
from torch import nn

from mmlk.analysis.complexity import count
from mmlk.backbones.slak import ARCHS, SLaK
from mmlk.reparam import merge
from mmlk.weights import load
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'SLaK': dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), kernel_size=(31, 29, 27, 13, 5), Decom=True),
}

SMALL = dict(depths=(1, 2, 4, 1), dims=(16, 24, 32, 48), width_factor=1.3)
STRIPES = dict(SMALL, kernel_size=(31, 29, 27, 13, 5), Decom=True)
FORMS = {'T': ('T', (1, 3, 64, 32)), 'odd': (STRIPES, (2, 3, 75, 107)),
         'dense': (dict(SMALL, kernel_size=(31, 29, 13, 5, 5)), (1, 3, 64, 49))}
# of the official classifiers, training form
CLASSIFIERS = {'T': 50_703_838, 'S': 91_131_820, 'B': 157_950_792, 'T-31': 49_581_838, 'T-61': 51_264_838}
HEAD = 1000


def on_meta(arch, **kwargs):
    with torch.device('meta'):
        return SLaK(arch, **kwargs)


def classifier_parameters(net, arch) -> int:
    """With a norm and a head of 1000 classes in place of the norms on the outputs."""
    dims = SLaK.complete(arch)['dims']
    return sum(p.numel() for p in net.parameters()) - 2 * sum(dims) + (HEAD + 2) * dims[-1] + HEAD


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, repo):
    fixture = np.load(repo / 'tests/data/slak.npz')
    arch, shape = FORMS[form]
    net = fill(SLaK(arch)).eval()
    assert sum(p.numel() for p in net.parameters()) == fixture[f'{form}.parameters']
    with torch.no_grad():
        maps = net(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


@pytest.mark.parametrize('arch', ARCHS)
def test_published_parameter_counts(arch):
    assert classifier_parameters(on_meta(arch), arch) == CLASSIFIERS[arch]


@pytest.mark.parametrize('arch, millions', [('T', 30), ('S', 55), ('B', 95), ('T-31', 30), ('T-61', 31)])
def test_published_sizes_are_of_the_weights_that_sparsity_leaves(arch, millions):
    net = on_meta(arch)
    matrices = sum(p.numel() for p in net.parameters() if p.dim() in (2, 4)) + HEAD * SLaK.complete(arch)['dims'][-1]
    assert round((classifier_parameters(net, arch) - 0.4 * matrices) / 1e6) == millions


@pytest.mark.parametrize('arch, billions', [('T', 5.0), ('S', 9.8), ('B', 17.1), ('T-31', 4.8), ('T-61', 5.2)])
def test_published_flops_are_about_what_sparsity_leaves(arch, billions):
    # about: which layers SNIP spares decides, and the published networks are not at hand; this is 0.6 of every layer
    macs = count(on_meta(arch, merged=True), (224, 224)).macs + HEAD * SLaK.complete(arch)['dims'][-1]
    assert 0.6 * macs / 1e9 == pytest.approx(billions, rel=0.04)


@pytest.mark.parametrize('arch', ARCHS)
def test_kernels_of_every_arch(arch):
    first = {'T-31': 31, 'T-61': 61}.get(arch, 51)
    width = 128 if arch == 'B' else 96
    net = on_meta(arch)
    assert net.out_channels == tuple(int(width * 2**stage * 1.3) for stage in range(4))
    assert [len(stage) for stage in net.stages] == [3, 3, 9 if arch.startswith('T') else 27, 3]
    for stage, kernel in zip(net.stages, (first, first - 2, first - 4, 13)):
        for block in stage:
            assert {name: branch.conv.kernel_size for name, branch in block.large_kernel.named_children()} == {
                'LoRA1': (kernel, 5), 'LoRA2': (5, kernel), 'small_conv': (5, 5)}


@pytest.mark.parametrize('dense', [False, True])
def test_merged_forms_are_equal_and_load(dense):
    net = fill(SLaK(STRIPES)).double().eval()
    merged = merge(net, dense=dense)
    built = SLaK(dict(STRIPES, Decom=not dense), merged=True).double().eval()
    built.load_state_dict(merged.state_dict())
    assert built.merged and merged.merged and not net.merged
    assert list(merge(merged, dense=dense).state_dict()) == list(merged.state_dict())
    x = image(2, 3, 75, 107).double()
    with torch.no_grad():
        for a, b, c in zip(net(x), merged(x), built(x)):
            assert relative_error(b, a) < 1e-10 and relative_error(c, a) < 1e-10


def test_every_branch_and_its_statistics_matter():
    net = fill(SLaK(STRIPES)).eval()
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        for name in ('LoRA1', 'LoRA2', 'small_conv'):
            before = net(x)[0]
            net.stages[0][0].large_kernel.get_submodule(name).bn.running_mean.add_(1)
            assert relative_error(net(x)[0], before) > 1e-3, name


@pytest.mark.parametrize('kernel_size, small', [((7, 7, 7, 7, 100), [False] * 4), ((7, 7, 7, 7, None), [False] * 4),
                                                ((31, 29, 13, 5, 5), [True, True, True, False])])
def test_a_small_kernel_that_is_not_smaller_is_no_branch_of_the_dense_form(kernel_size, small):
    net = SLaK(dict(SMALL, kernel_size=kernel_size))
    for stage, kernel, has_small in zip(net.stages, kernel_size, small):
        for block in stage:
            assert block.large_kernel.lkb_origin.conv.kernel_size == (kernel, kernel)
            assert hasattr(block.large_kernel, 'small_conv') is has_small


def test_layer_scale_is_of_the_arch():
    blocks = [block for stage in SLaK(dict(STRIPES, layer_scale_init_value=0.5)).stages for block in stage]
    assert all(block.gamma.eq(0.5).all() for block in blocks)
    assert all(p.eq(1e-6).all() for name, p in SLaK(STRIPES).named_parameters() if name.endswith('gamma'))


@pytest.mark.parametrize('change, message', [
    (dict(kernel_size=(31, 29, 27, 13)), 'one entry per stage and one for the small kernel, got 4 for 4 stages'),
    (dict(kernel_size=(31, 29, 27, 13, None)), 'Decom needs a small kernel'),
    (dict(kernel_size=(31, 29, 27, 13, 100)), 'kernels must be odd and positive, got 100'),
    (dict(kernel_size=(31, 29, 27, 13, 15)), 'the small kernel 15 is larger than the large kernel 13'),
    (dict(kernel_size=(31, 29, 27, 12, 5)), 'kernels must be odd and positive, got 12'),
    (dict(kernel_size=(31, 29, 27, 13, 4), Decom=False), 'kernels must be odd and positive, got 4'),
    (dict(width_factor=0.01), 'width_factor 0.01 leaves no channels'),
    (dict(dims=(16, 24, 32)), 'depths and dims must have one entry per stage, got 4 and 3'),
    (dict(LoRA=True), 'unknown keys in arch of SLaK: LoRA'),
])
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        SLaK(dict(STRIPES, **change))


def test_only_branches_take_norm_cfg():
    net = SLaK(dict(STRIPES, width_factor=1), norm_cfg=dict(type='GN', num_groups=4))
    assert sum(isinstance(m, nn.GroupNorm) for m in net.modules()) == 3 * sum(SMALL['depths'])
    assert sum(isinstance(m, nn.LayerNorm) for m in net.modules()) == sum(SMALL['depths']) + 4 + 4


def test_layer_ids_of_the_official_code():
    net = on_meta('T')
    assert net.num_layers == 6
    for name, depth in (('downsample_layers.0.0.weight', 0), ('stages.0.2.large_kernel.LoRA1.conv.weight', 1),
                        ('downsample_layers.1.0.bias', 2), ('stages.2.2.gamma', 3), ('stages.2.3.gamma', 4),
                        ('stages.2.8.pwconv1.weight', 5), ('downsample_layers.3.1.weight', 6), ('stages.3.0.gamma', 6),
                        ('norm2.weight', 7)):
        assert net.layer_id(name) == depth, name


def test_official_files_load(tmp_path):
    donor = fill(SLaK(STRIPES))
    body = {name: v for name, v in donor.state_dict().items() if not name.startswith('norm')}
    head = {'norm.weight': torch.ones(62), 'norm.bias': torch.ones(62), 'head.weight': torch.ones(10, 62),
            'head.bias': torch.ones(10)}
    torch.save({'model': {**body, **head}, 'epoch': 299}, tmp_path / 'classifier.pth')
    net = SLaK(STRIPES)
    report = load(net, tmp_path / 'classifier.pth')
    assert report.unexpected == list(head)
    assert set(report.left) == {f'norm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias')}
    for name, value in net.state_dict().items():
        assert name in report.left or torch.equal(value, body[name]), name
