import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmlk.analysis.complexity import count
from mmlk.backbones.mobilenetv2 import ARCHS, MobileNetV2
from mmlk.ops import DepthwiseConv2d
from mmlk.reparam import merge
from mmlk.reparam.algebra import pad_kernel
from mmlk.weights import WeightsError, load
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'MobileNetV2': dict(
        widen_factor=0.25, small_kernel=3, kernel_sizes=(3, 5, 13, 3, 13, 13),
        arch_settings=((1, 16, 1, 1), (2, 24, 2, 2), (2, 32, 2, 2), (2, 64, 1, 2), (2, 96, 2, 1), (2, 160, 2, 2))),
}

ROWS = ((1, 16, 1, 1), (2, 24, 2, 2), (2, 32, 2, 2), (2, 64, 1, 2), (2, 96, 2, 1), (2, 160, 2, 2))
SMALL = dict(widen_factor=0.25, arch_settings=ROWS)
LARGE = dict(SMALL, kernel_sizes=(3, 5, 13, 3, 13, 13), small_kernel=3)
FORMS = {'3': ('3', (1, 3, 64, 96)), 'odd': (dict(widen_factor=0.5), (2, 3, 75, 107))}


def parameters(arch, merged=False) -> int:
    with torch.device('meta'):
        return sum(p.numel() for p in MobileNetV2(arch, merged=merged).parameters())


@pytest.mark.parametrize('form', FORMS)
def test_equals_mmpretrains_implementation(form, repo):
    fixture = np.load(repo / 'tests/data/mobilenetv2.npz')
    arch, shape = FORMS[form]
    net = fill(MobileNetV2(arch)).eval()
    with torch.no_grad():
        maps = net(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


def test_equals_torchvisions_implementation():
    models = pytest.importorskip('torchvision.models')
    theirs = fill(models.mobilenet_v2()).eval().features[:-1]
    net = MobileNetV2('3').eval()
    net.load_state_dict(dict(zip(net.state_dict(), theirs.state_dict().values())))
    x, expected = image(2, 3, 75, 107), []
    with torch.no_grad():
        maps = net(x)
        for i, block in enumerate(theirs):
            x = block(x)
            if i in (3, 6, 13, 17):
                expected.append(x)
    for a, b in zip(maps, expected):
        assert relative_error(a, b) < 1e-5


# of the whole classifier: the last pointwise layer, its norm and 1000 classes beside the backbone
@pytest.mark.parametrize('arch, classifier, macs', [
    ('3', 3_504_872, 300_774_272), ('13', 4_646_632, 669_066_112), ('last13', 4_054_376, 327_869_312)])
def test_counts(arch, classifier, macs):
    # arch 3: torchvision's documented number, and the 300M of the MobileNetV2 paper
    with torch.device('meta'):
        counted = count(MobileNetV2(arch, merged=True), (224, 224))
    assert counted.parameters + 320 * 1280 + 2 * 1280 + 1281 * 1000 == classifier
    assert counted.macs + 320 * 1280 * 7 * 7 + 1280 * 1000 == macs


@pytest.mark.parametrize('arch', ARCHS)
def test_kernels_and_shortcuts_of_every_arch(arch):
    kind, _, variant = arch.partition('-')
    expected = [int(kind.replace('last', ''))] * 17 if 'last' not in kind else [3] * 13 + [int(kind[4:])] * 4
    with torch.device('meta'):
        net = MobileNetV2(arch)
    blocks = [block for row in range(7) for block in net._modules[f'layer{row + 1}']]
    mixers = [block.conv[-2] for block in blocks]
    assert [block.shortcut for block in blocks].count(True) == (0 if variant == 'noshortcut' else 10)
    reparam = [variant == 'reparam' or reach > 3 and kind.startswith('last') for reach in expected]
    convs = [m.lkb_origin.conv if has else m.conv for m, has in zip(mixers, reparam)]
    reach = [conv.dilation[0] * (conv.kernel_size[0] - 1) + 1 for conv in convs]
    assert reach == expected
    assert all((conv.kernel_size == (3, 3)) is (variant == 'dilated' or reach == 3)
               for conv, reach in zip(convs, reach))
    assert all(type(conv) is DepthwiseConv2d for conv in convs if conv.stride == conv.dilation == (1, 1))
    assert all(m.small_conv.conv.kernel_size == (3, 3) for m, has in zip(mixers, reparam) if has)


def test_a_large_kernel_that_is_zero_around_its_middle_is_the_small_one():
    small, large = (fill(MobileNetV2(dict(SMALL, kernel_sizes=(k, ) * 6))).double().eval() for k in (3, 13))
    for name, value in small.state_dict().items():
        target = large.state_dict()[name]
        target.copy_(pad_kernel(value, (13, 13)) if target.shape != value.shape else value)
    x = image(2, 3, 75, 107).double()
    with torch.no_grad():
        for a, b in zip(large(x), small(x)):
            assert relative_error(a, b) < 1e-12


def test_a_dilated_kernel_is_the_dense_one_with_zeros_between():
    dilated = fill(MobileNetV2(dict(SMALL, kernel_dilations=(6, ) * 6))).double().eval()
    dense = fill(MobileNetV2(dict(SMALL, kernel_sizes=(13, ) * 6))).double().eval()
    for name, value in dilated.state_dict().items():
        target = dense.state_dict()[name]
        if target.shape == value.shape:
            target.copy_(value)
        else:
            target.zero_()[..., ::6, ::6].copy_(value)
    x = image(2, 3, 75, 107).double()
    with torch.no_grad():
        for a, b in zip(dense(x), dilated(x)):
            assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize('stage_dilations', [(1, 1, 1, 1), (1, 1, 2, 4)])
def test_merging_equals_and_is_idempotent(stage_dilations):
    strides = tuple(2 if d == 1 else 1 for d in stage_dilations)
    net = fill(MobileNetV2(LARGE, strides=strides, dilations=stage_dilations)).double().train()
    merged = merge(net)
    again = merge(merged)
    assert merged.merged and not net.merged and not merged.training
    built = MobileNetV2(LARGE, strides=strides, dilations=stage_dilations, merged=True).double().eval()
    built.load_state_dict(merged.state_dict())
    x = image(2, 3, 75, 107).double()
    with torch.no_grad():
        for outputs in zip(net.eval()(x), merged(x), again(x), built(x)):
            for other in outputs[1:]:
                assert relative_error(other, outputs[0]) < 1e-10


def test_only_larger_kernels_have_a_small_one_beside():
    net = MobileNetV2(LARGE)
    reparam = [row for row in range(6) if hasattr(net._modules[f'layer{row + 1}'][0].conv[-2], 'small_conv')]
    assert reparam == [1, 2, 4, 5]


def test_the_shortcut_matters():
    with_, without = (fill(MobileNetV2(dict(SMALL, shortcut=s))).eval() for s in (True, False))
    x = image(1, 3, 64, 64)
    assert relative_error(without(x)[-1], with_(x)[-1]) > 0.05
    with pytest.raises(ValueError, match='drop_path_rate leaves the shortcut alone, and this arch has none'):
        MobileNetV2(dict(SMALL, shortcut=False), drop_path_rate=0.1)


def test_strides_and_dilations():
    net = MobileNetV2(SMALL, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4))
    assert [tuple(m.shape[2:]) for m in net(image(1, 3, 75, 107))] == [(19, 27), (10, 14), (10, 14), (10, 14)]
    dilations = [[block.conv[-2].conv.dilation[0] for block in net._modules[f'layer{row}']] for row in range(1, 7)]
    assert dilations == [[1], [1, 1], [1, 1], [2], [2, 2], [4, 4]]
    for name in ('strides', 'dilations'):
        with pytest.raises(ValueError, match=f'{name} must be 4 positive integers'):
            MobileNetV2(SMALL, **{name: (1, 1, 0, 1)})


def test_dilations_of_single_blocks():
    net = MobileNetV2(SMALL, strides=(2, 2, 1, 1), dilations=(1, 1, (2, 3, 1), 4))
    dilations = [[block.conv[-2].conv.dilation[0] for block in net._modules[f'layer{row}']] for row in range(1, 7)]
    assert dilations == [[1], [1, 1], [1, 1], [2], [3, 1], [4, 4]]
    for wrong in ((2, 2), (2, 2, 0), (2, 2, 1, 1)):
        with pytest.raises(ValueError, match='dilations must be 4 positive integers, or as many as its blocks'):
            MobileNetV2(SMALL, dilations=(1, 1, wrong, 1))


def test_the_d8_form_equals_mmsegs(repo):
    backbones = pytest.importorskip('mmseg.models.backbones')
    theirs = fill(backbones.MobileNetV2(
        out_indices=(1, 2, 4, 6), strides=(1, 2, 2, 1, 1, 1, 1), dilations=(1, 1, 1, 2, 2, 4, 4)))
    theirs.eval()
    cfg = Config.fromfile(str(repo / 'configs' / 'deeplabv3plus_mobilenetv2-3_cityscapes.py')).model.backbone
    cfg = {**cfg, 'norm_cfg': dict(type='BN'), 'init_cfg': None}
    cfg.pop('type')
    net = MobileNetV2(**cfg).eval()
    net.load_state_dict(theirs.state_dict())
    x = image(1, 3, 97, 129)
    with torch.no_grad():
        for a, b in zip(net(x), theirs(x)):
            assert relative_error(a, b) < 1e-5


def test_mmpretrains_file_loads(tmp_path):
    donor = fill(MobileNetV2(SMALL))
    head = {'backbone.conv2.conv.weight': torch.ones(8, 40, 1, 1), 'head.fc.weight': torch.ones(10, 8)}
    body = {f'backbone.{name}': value for name, value in donor.state_dict().items()}
    torch.save({'state_dict': {**body, **head}, 'meta': {}}, tmp_path / 'classifier.pth')
    net = MobileNetV2(SMALL)
    report = load(net, tmp_path / 'classifier.pth')
    assert sorted(report.unexpected) == ['conv2.conv.weight', 'head.fc.weight'] and not report.left
    assert all(torch.equal(net.state_dict()[name], value) for name, value in donor.state_dict().items())
    with pytest.raises(WeightsError, match='were not filled'):
        load(MobileNetV2(LARGE), tmp_path / 'classifier.pth')


def test_layer_ids_count_blocks():
    with torch.device('meta'):
        net = MobileNetV2('13-reparam')
    expected = {'conv1.conv.weight': 0, 'layer1.0.conv.0.lkb_origin.conv.weight': 1, 'layer1.0.conv.1.bn.bias': 1,
                'layer2.1.conv.1.small_conv.bn.weight': 3, 'layer7.0.conv.2.conv.weight': 17}
    assert {name: net.layer_id(name) for name in expected} == expected
    assert net.num_layers == 17 and [net.stage_id(name) for name in expected] == [0, 1, 1, 1, 4]


def test_initial_weights_are_torchvisions_distribution():
    torch.manual_seed(0)
    net = MobileNetV2(dict(kernel_sizes=(13, ) * 7))
    for module in net.layer6.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0]**2
            assert module.weight.std().item() == pytest.approx((2 / fan_out)**0.5, rel=0.05)


@pytest.mark.parametrize('arch, problem', [
    ('7', "unknown arch '7' of MobileNetV2; there are 3, 3-noshortcut, 9"),
    (dict(kernels=(3, )), 'unknown keys in arch of MobileNetV2: kernels'),
    (dict(kernel_sizes=(3, 3)), 'kernel_sizes must have one entry per row of arch_settings, got 2 for 7'),
    (dict(kernel_dilations=(2, )), 'kernel_dilations must have one entry per row of arch_settings, got 1 for 7'),
    (dict(kernel_dilations=(0, ) * 7), 'kernel_dilations must be positive integers'),
    (dict(kernel_sizes=(4, ) * 7), 'odd and positive, got 4'),
    (dict(kernel_sizes=(5, ) * 7, small_kernel=2), 'odd and positive, got 2'),
    (dict(small_kernel=3), 'small_kernel stands beside larger, dense kernels; got 3'),
    (dict(kernel_sizes=(5, ) * 7, small_kernel=3, kernel_dilations=(2, ) * 7), 'beside larger, dense kernels'),
    (dict(arch_settings=((1, 16, 1), )), 'a row of arch_settings is expansion, channels, blocks, stride'),
    (dict(arch_settings=((1, 16, 1, 3), )), 'the stride 1 or 2'),
    (dict(arch_settings=((1, 16, 1, 1), )), 'arch_settings needs a row with stride 2'),
    (dict(widen_factor=0), 'widen_factor must be positive, got 0'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        MobileNetV2(arch)
