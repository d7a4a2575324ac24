"""OverLoCK against its official code.

``tests/data/overlock.npz`` was made by ``segmentation/models/overlock.py``, ``detection/models/overlock.py`` (form
``detection``) and ``models/overlock.py`` (``classifier``) of github.com/LMMMEng/OverLoCK (Apache-2.0) at 2c8ab3b, torch
2.12.1, CPU. natten's ``na2d_av`` was replaced by loops over the pixels, mmcv's and mmseg's imports by empty modules.
The networks were in eval mode, filled by ``fill(net)`` rounded to float32, and run in float64 on ``image(*shape)``. The
file has the four maps of each form of ``FORMS`` as float32, the number of parameters, and every 8th logit of the
classifier.
"""
import numpy as np
import pytest
import torch
from torch import nn

from mmlk.analysis.classifiers import with_head
from mmlk.analysis.complexity import count
from mmlk.backbones.overlock import (ARCHS, BRANCHES, DynamicConvBlock, LayerScale, OverLoCK, ResDWConv, _enlarged,
                                     _position_bias)
from mmlk.reparam import merge
from mmlk.reparam.dilated import DilatedReparamBlock
from mmlk.weights import WeightsError, load
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'OverLoCK': dict(depth=(1, 1, 1, 1), sub_depth=(2, 1), embed_dim=(8, 16, 16, 32), kernel_size=(7, 5, 7, 5),
                     mlp_ratio=(2, 2, 2, 2), sub_num_heads=(1, 2), sub_mlp_ratio=(2, 2)),
}
ODD = dict(depth=(1, 2, 1, 1), sub_depth=(2, 2), embed_dim=(8, 16, 16, 32), kernel_size=(19, 11, 7, 5),
           mlp_ratio=(2, 2, 2, 2), sub_num_heads=(1, 2), sub_mlp_ratio=(2, 3))
# kernels of 9 and 5, and everything that the named archs have no use for
OTHER = dict(ODD, kernel_size=(9, 5, 5, 9), res_scale=False, ls_init_value=(None, 1, 1, None), smk_size=3)
# in the third stage, the maps of XT and of the merged form are smaller than the windows, and those of 'odd' larger
FORMS = {
    'XT': ('XT', (1, 3, 64, 64), {}),
    'odd': (ODD, (1, 3, 117, 165), {}),
    'detection': (OTHER, (1, 3, 75, 107), dict(detection=True)),
    'deploy': (ODD, (1, 3, 64, 48), dict(merged=True)),
}


def on_meta(arch, **kwargs) -> OverLoCK:
    with torch.device('meta'):
        return OverLoCK(arch, **kwargs)


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, repo):
    fixture = np.load(repo / 'tests/data/overlock.npz')
    arch, shape, kwargs = FORMS[form]
    net = fill(OverLoCK(arch, **kwargs)).eval()
    assert sum(p.numel() for p in net.parameters()) == fixture[f'{form}.parameters']
    with torch.no_grad():
        maps = net(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


def test_logits_are_those_of_the_official_classifier(tmp_path, repo):
    """A head with two 1x1 convolutions, and a second one for training that no image goes through."""
    net, projection = fill(OverLoCK(TINY['OverLoCK'])), 1024
    head = nn.ModuleDict({'head': nn.Sequential(
        nn.Conv2d(40, projection, 1, bias=False), nn.BatchNorm2d(projection), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(projection, 1000, 1)), 'aux_head': nn.Sequential(
            nn.BatchNorm2d(32), nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 1000, 1))})
    state = {name: v for name, v in net.state_dict().items() if not name.startswith('extra_norm')}
    torch.save({'state_dict': {**state, **fill(head).state_dict()}}, tmp_path / 'classifier.pth')
    logits = with_head(OverLoCK(TINY['OverLoCK']), str(tmp_path / 'classifier.pth')).network(image(2, 3, 64, 64))
    official = torch.from_numpy(np.load(repo / 'tests/data/overlock.npz')['classifier'])
    assert relative_error(logits[:, ::8], official) < 1e-5


# of the official classifier with 1000 classes, in training with the auxiliary head and merged without it
@pytest.mark.parametrize('arch, training, merged, published, flops', [
    ('XT', 17_307_272, 16_453_712, 16, 2.6), ('T', 34_990_472, 33_467_040, 33, 5.5),
    ('S', 58_309_772, 56_156_452, 56, 9.7), ('B', 98_012_968, 94_942_528, 95, 16.7)])
def test_published_parameters_and_flops(arch, training, merged, published, flops):
    forms = {form: on_meta(arch, merged=form) for form in (False, True)}
    context, last = forms[True].out_channels[3], ARCHS[arch]['embed_dim'][3]
    head = context * 1024 + 2 * 1024 + 1000 * 1025
    norms = 2 * sum(forms[True].out_channels)
    parameters = {form: sum(p.numel() for p in net.parameters()) for form, net in forms.items()}
    assert parameters[False] - norms + head + 2 * last + 1000 * (last + 1) == training
    assert parameters[True] - norms + head == merged
    assert merged / 1e6 == pytest.approx(published, abs=0.5)  # rounded to millions
    by_module = operations(forms[True]) + 49 * context * 1024 + 1000 * 1024
    assert by_module / 1e9 == pytest.approx(flops, rel=0.01)
    if arch == 'XT':  # by mmlk's count it is more, and takes long
        assert 1.03 < (count(forms[True], (224, 224)).macs + 49 * context * 1024 + 1000 * 1024) / 1e9 / flops < 1.04


def operations(net):
    """Operations at 224x224 as counters by module see them, by which the published figures come out: no products of
    attention and no subclass of a convolution (the residual ones), but norms (two per value) and activations."""
    total = 0

    def note(module, args, out):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += module.weight[0].numel() * out.numel() * (not isinstance(module, ResDWConv))
        else:
            total += out.numel() * (1 + isinstance(module, nn.BatchNorm2d))

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.GELU, nn.SiLU, nn.Sigmoid)):
            module.register_forward_hook(note)
    net.eval()(torch.empty(1, 3, 224, 224, device='meta'))
    return total


def test_the_detection_form_has_more():
    plain, more = on_meta('XT'), on_meta('XT', detection=True)
    last, context = ARCHS['XT']['embed_dim'][3], plain.out_channels[3]
    assert plain.out_channels == more.out_channels
    kept = plain.state_dict()
    extra = {name: p for name, p in more.state_dict().items() if name not in kept}
    assert sum(p.numel() for p in extra.values()) == 2 * last + context * (last + 1) + 2 * context
    assert {name.partition('.')[0] for name in extra} == {'h_proj', 'extra_norm'}
    net = fill(OverLoCK(TINY['OverLoCK'], detection=True)).eval()
    with torch.no_grad():
        added = net(image(1, 3, 64, 64))
        net.h_proj[1].weight.zero_()
        net.h_proj[1].bias.zero_()
        plain = fill(OverLoCK(TINY['OverLoCK'])).eval()(image(1, 3, 64, 64))
        assert all(torch.equal(a, b) for a, b in zip(net(image(1, 3, 64, 64)), plain))
    assert relative_error(added[3], plain[3]) > 0.1
    # a last map that is not returned needs no overview
    assert not [name for name in on_meta('XT', detection=True, out_indices=(0, 2)).state_dict() if 'h_proj' in name]


def test_branches_are_merged_and_the_table_is_its_own():
    net = on_meta('T')
    blocks = [m for m in net.modules() if isinstance(m, DilatedReparamBlock)]
    assert len(blocks) == 4 + 4 + 6 + 2 + 12 + 2
    for block in blocks:
        kernel = block.lk_origin.kernel_size[0]
        assert block.small == BRANCHES[kernel] and hasattr(block, 'dil_conv_k5_1')
        assert max(d * (k - 1) + 1 for k, d in block.small) <= kernel
    net = fill(OverLoCK(TINY['OverLoCK'])).eval()
    merged = merge(net)
    assert not any('dil_' in name or 'origin_bn' in name for name in merged.state_dict())


@pytest.mark.parametrize('size, kernel, expected', [
    ((14, 14), 13, (14, 14)), ((13, 40), 13, (13, 40)), ((7, 9), 13, (13, 16)), ((9, 7), 13, (16, 13)),
    ((1, 3), 7, (7, 21)), ((6, 2), 7, (21, 7)), ((4, 4), 5, (5, 5))])
def test_small_maps_are_enlarged_as_officially(size, kernel, expected):
    assert _enlarged(*size, kernel) == expected
    traced = _enlarged(*map(torch.tensor, size), kernel)  # as sizes are in a graph that is being traced
    assert tuple(map(int, traced)) == expected


def test_position_bias_is_that_of_the_offset():
    table = torch.arange(2 * 9 * 9).reshape(2, 9, 9)
    bias = _position_bias(table, 6, 8)
    for i, j in ((0, 0), (0, 5), (3, 3), (5, 7), (2, 7), (4, 1)):
        top, left = min(max(i - 2, 0), 1), min(max(j - 2, 0), 3)
        for p in range(5):
            for q in range(5):
                assert bias[1, i, j, p, q] == table[1, top + p - i + 4, left + q - j + 4]


@pytest.mark.parametrize('autocast', [True, False])
def test_half_precision(autocast):
    net, x = fill(OverLoCK(TINY['OverLoCK'])).eval(), image(1, 3, 117, 165)
    with torch.no_grad():
        expected = net(x)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            maps = net(x) if autocast else net.bfloat16()(x.bfloat16())
    for feature, theirs in zip(maps, expected):
        assert autocast or feature.dtype == torch.bfloat16
        assert relative_error(feature, theirs) < 0.05


def test_initial_values():
    torch.manual_seed(0)
    net = OverLoCK(dict(TINY['OverLoCK'], embed_dim=(16, 32, 64, 64)), detection=True)
    block = net.sub_blocks3[1]
    for weight in (block.mlp[0].weight, block.weight_query[0].weight, net.h_proj[0].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(m.bias.any() for m in net.modules() if isinstance(m, nn.Conv2d) and m.bias is not None)
    scales = {name: m.weight for name, m in net.named_modules() if isinstance(m, LayerScale)}
    assert {name: v.flatten()[0].item() for name, v in scales.items() if (v != 1).any()} == {
        'h_proj.1': pytest.approx(1e-5)}
    assert len(scales) == 1 + 2 * 3 + 2 * 2 + 2  # h_proj, ls1 and ls2, x_scale and h_scale but in the first, ls
    assert not block.rpb1.any() and not block.rpb2.any() and block.rpb2.shape == (2, 13, 13)


def test_official_files_load(tmp_path):
    arch = TINY['OverLoCK']
    donor = fill(OverLoCK(arch, detection=True))
    state = donor.state_dict()
    body = {name: v for name, v in state.items() if not name.startswith(('extra_norm', 'h_proj'))}
    heads = {name: torch.ones(3) for name in ('head.0.weight', 'head.1.bias', 'aux_head.2.weight')}
    torch.save({'state_dict': {**body, **heads}}, tmp_path / 'classifier.pth')
    for detection in (False, True):
        net = OverLoCK(arch, detection=detection)
        report = load(net, tmp_path / 'classifier.pth')
        assert report.unexpected == list(heads)
        assert set(report.left) == {name for name in net.state_dict() if name.startswith(('extra_norm', 'h_proj'))}
        assert all(torch.equal(net.state_dict()[name], v) for name, v in body.items())
    torch.save({'state_dict': {f'backbone.{name}': v for name, v in state.items()}}, tmp_path / 'detector.pth')
    assert not load(OverLoCK(arch, detection=True), tmp_path / 'detector.pth').left
    with pytest.raises(WeightsError, match='h_proj'):  # the last map would be another one
        load(OverLoCK(arch), tmp_path / 'detector.pth')
    assert load(OverLoCK(arch, out_indices=(0, 1, 2)), tmp_path / 'detector.pth').complete


def test_layers_and_weight_decay():
    net = on_meta('T', detection=True)
    expected = {'patch_embed1.0.weight': 0, 'blocks1.0.dwconv.bias': 1, 'blocks1.3.proj.0.weight': 4,
                'patch_embed2.0.weight': 5, 'patch_embed4.1.bias': 15, 'blocks4.1.ls.weight': 16,
                'high_level_proj.weight': 17, 'sub_blocks3.0.rpb1': 17, 'sub_blocks3.11.gate.0.weight': 28,
                'patch_embedx.h_proj.0.weight': 29, 'sub_blocks4.1.ls2.bias': 30, 'extra_norm.0.weight': 31,
                'h_proj.0.weight': 31}
    assert {name: net.layer_id(name) for name in expected} == expected and net.num_layers == 30
    free = net.no_weight_decay()
    assert {name.rpartition('.')[2] for name in free} == {'rpb1', 'rpb2', 'gamma', 'beta', 'weight'}
    scales = {f'{name}.weight' for name, m in net.named_modules() if isinstance(m, LayerScale)}
    assert scales == {name for name in free if name.endswith('.weight')}


def test_heads():
    for arch, width in (('T', 16), ('S', 10), ('B', 16)):
        net = on_meta(arch)
        block = net.sub_blocks3[0]
        assert isinstance(block, DynamicConvBlock)
        assert ARCHS[arch]['embed_dim'][2] // 2 // block.num_heads == width
        assert block.scale == pytest.approx((2 * width)**-0.5)  # of a head twice as wide as it is, as officially


@pytest.mark.parametrize('arch, problem', [
    ('L', "unknown arch 'L' of OverLoCK; there are XT, T, S, B, or pass a dict"),
    (dict(depth=(1, )), 'lacks embed_dim'),
    (dict(ODD, depth=(1, 1)), 'must have one entry per stage, got 2, 4, 4, 4 and 4'),
    (dict(ODD, sub_depth=(1, )), 'must have one entry per stage, got 1, 2 and 2'),
    (dict(ODD, embed_dim=(8, 16, 16, 34)), 'even in the first stage and a multiple of 4 in the last'),
    (dict(ODD, sub_num_heads=(3, 2)), '3 heads need channels that 12 divides, got 16'),
    (dict(ODD, kernel_size=(19, 11, 8, 5)), 'a kernel size may be 5, 7, 9, 11, 13, 15, 17, 19, got 8'),
    (dict(ODD, smk_size=7), 'smk_size must be odd and at most 5, the kernel beside it, got 7'),
    (dict(ODD, ls_init_value=(None, 1, 1, -1)), 'ls_init_value must be a number of at least 0, got -1'),
    (dict(ODD, res_scale='no'), "res_scale must be True or False, got 'no'"),
    (dict(ODD, sub_mlp_ratio=(0, 1)), r'sub_mlp_ratio \(0, 1\) leave no channels'),
    (dict(ODD, dims=8), 'unknown keys in arch of OverLoCK: dims'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        OverLoCK(arch)


def test_wrong_form_is_refused():
    with pytest.raises(ValueError, match="detection must be True or False, got 'yes'"):
        OverLoCK(TINY['OverLoCK'], detection='yes')
