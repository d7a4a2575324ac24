"""Networks in inference form, against the same networks as they were trained."""
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmlk.deploy import OptimizedNetwork, fused, optimize
from mmlk.deploy.fused import Activation, FeedForward, FusedConv, OverLastAxis, image_of, linear
from mmlk.deploy.winograd import WinogradConv
from mmlk.ops import choice, depthwise_conv2d
from mmlk.registry import MODELS
from mmlk.reparam import merge
from tests.backbones.test_contract import TINY
from tests.utils import fill, image, relative_error, same_detections

BFLOAT16 = fused.available(torch.bfloat16)
pytestmark = pytest.mark.skipif(not fused.available(torch.float32), reason='no packed convolutions in this PyTorch')
ACTIVATIONS = {'none': lambda x: x, 'relu': torch.relu, 'sigmoid': torch.sigmoid, 'tanh': torch.tanh, 'swish': F.silu,
               'hardswish': F.hardswish}


def outputs(network, x):
    with torch.no_grad():
        out = network(x)
    return [out] if isinstance(out, torch.Tensor) else list(out)


def layers(network, kind):
    return [module for module in network.graph.modules() if isinstance(module, kind)]


def same(network, fast, *sizes, tolerance=2e-5):
    """Checks that two networks compute the same, and that the second leaves its input and its earlier outputs alone."""
    for size in sizes:
        x = image(*size)
        before, expected = x.clone(), outputs(network, x)
        first = outputs(fast, x)
        kept = [out.clone() for out in first]
        assert len(first) == len(expected)
        for ours, theirs in zip(first, expected):
            assert relative_error(ours, theirs) < tolerance, size
            assert ours.dtype == theirs.dtype and ours.is_contiguous()
        assert torch.equal(x, before)
        outputs(fast, x + 1)
        assert all(map(torch.equal, first, kept)), 'a later call has overwritten an earlier output'


@pytest.mark.parametrize('family', [  # InternImage stands for FlashInternImage, which takes as many samples
    pytest.param(name, marks=[pytest.mark.slow] * (name == 'FlashInternImage')) for name in sorted(TINY)])
def test_every_backbone_computes_the_same(family):
    network = fill(MODELS.build(dict(type=f'mmlk.{family}', arch=copy.deepcopy(TINY[family])))).eval()
    size = 224 if family == 'GFNet' else 128
    fast = optimize(network, image(1, 3, size, size))
    done = fast.optimization
    assert fast.graph is not None and done.fused['convolutions'] > 4, done
    assert done.difference < 1e-4
    # ParCNet's and GFNet's maps are tied to a size; every other graph takes any
    same(network, fast, (1, 3, size, size), (2, 3, 160, 128), (1, 3, 131, 155), (1, 3, 65, 70))
    if done.step is not None:
        assert fast.takes(image(1, 3, 160, 128))


@pytest.mark.parametrize('arch', [dict(large_kernel_sizes=(9, 9), layers=(1, 2), channels=(8, 12), small_kernel=3)])
def test_what_a_replknet_becomes(arch):
    fast = optimize(fill(MODELS.build(dict(type='mmlk.RepLKNet', arch=arch, out_indices=(0, 1)))).eval(),
                    image(1, 3, 64, 64))
    done = fast.optimization
    assert (done.merged, done.fused['depthwise convolutions'], done.fused['feed-forward blocks']) == (3, 3, 3)
    assert done.fused['sums'] == 6, 'both kinds of block add their shortcut inside a convolution'
    assert not [node for node in fast.graph.graph.nodes if node.target is torch.ops.aten.add.Tensor]
    assert done.step == 1 and 'any size' in str(done)


def test_convnext_has_no_activation_factor_or_sum_left():
    network = fill(MODELS.build(dict(type='mmlk.ConvNeXt', arch=copy.deepcopy(TINY['ConvNeXt'])))).eval()
    fast = optimize(network, image(1, 3, 64, 64))
    left = {node.target for node in fast.graph.graph.nodes}
    aten = torch.ops.aten
    assert not left & {aten.gelu.default, aten.mul.Tensor, aten.add.Tensor, aten.linear.default}
    assert layers(fast, FeedForward)


def demo(name):
    """A demo's model with random weights, and its class scores spread so that it predicts something."""
    from mmengine.config import Config

    from mmlk.engine.network import build_network
    model = fill(build_network(Config.fromfile(f'configs/demo/{name}.py'))).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(('fc_cls.weight', 'rpn_cls.weight', 'conv_seg.weight')):
            parameter.data *= 5
    return model


def predictions(model, inputs):
    from mmengine.structures import BaseDataElement
    if hasattr(model, 'decode_head'):
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    size = tuple(inputs.shape[2:])
    samples = [Sample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0),
                                    batch_input_shape=size)) for _ in inputs]
    assert isinstance(samples[0], BaseDataElement)
    with torch.no_grad():
        return model.predict(inputs, samples)


@pytest.mark.parametrize('size', [(96, 128), (110, 101), (64, 72)])
def test_segmentors_predict_the_same(size):
    model = demo('upernet_replknet-tiny_ade20k')
    fast = optimize(model, image(1, 3, 96, 128))
    assert type(fast) is type(model) and fast.backbone.graph is not None
    assert fast.backbone.takes(image(1, 3, *size)) is (min(size) >= 96)
    x = image(2, 3, *size)
    for ours, theirs in zip(predictions(fast, x), predictions(model, x)):
        assert relative_error(ours.seg_logits.data, theirs.seg_logits.data) < 1e-5
        assert (ours.pred_sem_seg.data != theirs.pred_sem_seg.data).float().mean() < 1e-3
    assert relative_error(fast(x, mode='tensor'), model(x, mode='tensor')) < 1e-5


def test_detectors_predict_the_same():
    model = demo('mask_rcnn_replknet-tiny_coco')
    fast = optimize(model, image(1, 3, 96, 128))
    assert type(fast) is type(model) and fast.neck is None and fast.backbone.graph is not None
    x = image(2, 3, 128, 128)
    for ours, theirs in zip(predictions(fast, x), predictions(model, x)):
        ours, theirs = ours.pred_instances, theirs.pred_instances
        assert len(theirs) > 5
        place = same_detections(*([one.bboxes, one.scores, one.labels] for one in (ours, theirs)), pixels=0.05)
        assert (ours.masks[place] != theirs.masks).float().mean() < 1e-3


class Shortcuts(nn.Module):
    """Sums of which one term is needed again: it must not be overwritten."""

    def __init__(self, form):
        super().__init__()
        self.form, self.a, self.b = form, nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return getattr(self, self.form)(x)

    def of_the_input(self, x):
        return x + self.a(x)

    def used_afterwards(self, x):
        x = self.a(x)
        y = x + self.b(x)
        return y * x.mean()

    def returned_too(self, x):
        x = self.a(x)
        return x, x + self.b(x)

    def view_used_afterwards(self, x):
        x = self.a(x)
        view = x.flatten(2)
        return (x + self.b(x)).flatten(2) * view

    def view_overwritten(self, x):
        x = self.a(x)
        part = x[:, :, ::2]
        return part + self.b(part), x

    def of_itself(self, x):
        x = self.a(x)
        return x + x

    def twice(self, x):
        x = self.a(x)
        return self.b(self.b(x) + x) + x

    def relu_of_what_is_used(self, x):
        x = x.relu() + 1
        return x.relu() + self.a(x)

    def chunks_used_afterwards(self, x):
        x = self.a(x)
        first, second = x.transpose(1, 2).chunk(2, dim=1)
        return (x + self.b(x)).sum() + first * second

    def parts_used_afterwards(self, x):
        x = self.a(x)
        parts = x.unbind(1), x.split(1, dim=1), x.narrow(2, 0, 5), x.unflatten(1, (3, 1)), x.movedim(1, 3)
        y = x + self.b(x)
        return y, *parts[0], *parts[1], *parts[2:]

    def itself_under_another_name(self, x):
        x = self.a(x)
        other = F.dropout(x.type_as(self.a.weight).expand_as(x).view_as(x), training=False)
        return x + self.b(x), other + 1

    def relu_of_a_view(self, x):
        x = self.a(x)
        return x.mean((2, 3), keepdim=True).expand_as(x).relu() + 1, x[:, :1].expand_as(x).add(self.b(x)).relu()

    def changed_in_place(self, x):
        x = self.a(x)
        view = x[:, :1]
        x.relu_()
        return x + self.b(x), view * 2

    def expanded(self, x):
        x = self.a(x)
        return x.mean((2, 3), keepdim=True).expand_as(x) + self.b(x)

    def broadcast(self, x):
        x = self.a(x)
        return x.mean((2, 3), keepdim=True) + self.b(x)

    def scaled_by_another_axis(self, x):
        x = self.a(x)
        return x * torch.arange(x.shape[-1], dtype=x.dtype)

    def minus(self, x):
        return torch.add(self.a(x), self.b(x), alpha=-2)

    def chain_of_activations(self, x):
        return self.b(F.gelu(self.a(x), approximate='tanh').sigmoid()).relu().mul(2)


class Positions(nn.Module):
    """A map plus a weight of the same size for each position, as position embeddings are."""

    def __init__(self):
        super().__init__()
        self.conv, self.embedding = nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(1, 4, 96, 96))

    def forward(self, x):
        return self.conv(x) + self.embedding


def test_a_weight_of_the_shape_of_a_map_is_added_to_every_image():
    network = fill(Positions()).eval()
    fast = optimize(network, image(1, 3, 96, 96))
    assert fast.graph is not None
    same(network, fast, (1, 3, 96, 96), (3, 3, 96, 96))


class Sized(nn.Module):
    """A network of which the graph for one size is wrong for another, which torch.export does not notice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return sum(part.mean() for part in self.conv(x).split(32, dim=3)) + self.conv(x)


def test_a_graph_of_several_sizes_is_compared_at_a_second_one():
    network = fill(Sized()).eval()
    fast = optimize(network, image(1, 3, 96, 128))
    assert fast.optimization.step is None and fast.takes(image(1, 3, 96, 128)) and not fast.takes(image(1, 3, 96, 160))
    same(network, fast, (1, 3, 96, 128), (1, 3, 96, 160))


@pytest.mark.parametrize('form', [name for name in vars(Shortcuts) if not name.startswith('_') and name != 'forward'])
def test_nothing_is_overwritten_that_is_needed(form):
    network = fill(Shortcuts(form)).eval()
    fast = optimize(network, image(1, 3, 96, 96))
    assert fast.graph is not None and layers(fast, FusedConv)
    same(network, fast, (1, 3, 96, 96), (2, 3, 100, 96))


class Tokens(nn.Module):
    """Linear layers over the last of three axes, as transformers have them."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.scale = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Parameter(torch.ones(8))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8, bias=False)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return x + self.scale * self.down(F.gelu(self.up(self.norm(x))))


def test_linear_layers_over_tokens():
    network = fill(Tokens()).eval()
    fast = optimize(network, image(1, 3, 96, 96))
    assert len(layers(fast, OverLastAxis)) == 2 and fast.optimization.fused['scales'] == 1
    same(network, fast, (1, 3, 96, 96), (3, 3, 96, 100))


@pytest.mark.parametrize('name', ['convnextv2_atto', 'efficientvit_b0', 'resnet10t', 'swin_tiny_patch4_window7_224'])
def test_models_of_timm(name):
    import timm
    keywords = dict(img_size=64, window_size=2, embed_dim=16, depths=(1, 2), num_heads=(1, 2)) if 'swin' in name else {}
    network = fill(timm.create_model(name, features_only=True, **keywords)).eval()
    fast = optimize(network, image(1, 3, 64, 64))
    assert all(len(conv.packed) == 1 for conv in layers(fast, FusedConv)), 'packed for other sizes than the example has'
    assert not [node for node in fast.graph.graph.nodes if node.target is torch.ops.aten.linalg_vector_norm.default]
    same(network, fast, (1, 3, 64, 64), (2, 3, 64, 64))


class Windows(nn.Module):
    """Masks pixels by a map that is written part by part, as Swin's attention masks are, for one number of images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        mask = torch.zeros(1, 1, *x.shape[2:])
        for part in (slice(0, -8), slice(-8, -3), slice(-3, None)):
            mask[:, :, part] = part.start
        return self.conv(x) * mask + int(x.shape[0] * 2.5)


def test_a_graph_for_one_number_of_images_and_what_is_written_to_a_part_of_a_map():
    network = fill(Windows()).eval()
    fast = optimize(network, image(2, 3, 96, 96))
    done = fast.optimization
    assert (done.step, done.batch) == (None, 2) and '2 at a time' in str(done)
    assert fast.takes(image(2, 3, 96, 96)) and not fast.takes(image(1, 3, 96, 96))
    same(network, fast, (2, 3, 96, 96), (1, 3, 96, 96), (2, 3, 96, 104))


class NotItself(nn.Sequential):
    """A network whose ``train()`` does not return it, as those of mmdet's ResNet and of mmseg's Swin do not."""

    def train(self, mode=True):
        super().train(mode)


def test_a_network_whose_train_returns_nothing():
    network = fill(NotItself(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    network.eval()
    same(network, optimize(network, image(1, 3, 64, 64)), (1, 3, 64, 64))
    assert merge(network)[0].weight.shape == (4, 3, 3, 3)


def test_a_map_stays_in_channels_last_after_a_norm():
    """LayerNorm of (N, C, H, W) permutes there and back, and then copies the map out of channels_last."""
    network = fill(MODELS.build(dict(type='mmlk.ConvNeXt', arch=copy.deepcopy(TINY['ConvNeXt'])))).eval()
    graph = optimize(network, image(1, 3, 96, 96)).graph.graph
    assert not [node for node in graph.nodes if node.target is torch.ops.aten.contiguous.default]


def test_depthwise_kernels_are_measured_for_the_example(monkeypatch):
    races = []
    monkeypatch.setattr(choice, '_state', choice._State())
    monkeypatch.setattr(choice, 'race', lambda calls, device: races.append(len(calls)) or [1.0] * len(calls))
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 13, padding=6, groups=4)).eval()
    optimize(network, image(1, 3, 128, 128))
    assert len(races) == 1, 'once, for the size of the example'


def test_a_network_that_no_graph_can_be_made_of_is_still_merged():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) if x.sum().item() > 0 else self.conv(x)

    network = fill(Deciding()).eval()
    fast = optimize(network, image(1, 3, 32, 32))
    assert fast.graph is None and 'not fused' in str(fast.optimization)
    same(network, fast, (1, 3, 32, 32), (2, 3, 20, 31))


def test_it_cannot_be_trained_and_the_model_is_not_changed():
    network = fill(MODELS.build(dict(type='mmlk.RepLKNet', arch=copy.deepcopy(TINY['RepLKNet']))))
    network.stages[0].eval()
    before = copy.deepcopy(network.state_dict())
    flags = [module.training for module in network.modules()]
    fast = optimize(network, image(1, 3, 64, 64))
    assert isinstance(fast, OptimizedNetwork) and fast.eval() is fast
    with pytest.raises(RuntimeError, match='cannot be trained'):
        fast.train()
    assert [module.training for module in network.modules()] == flags
    assert all(p.requires_grad for p in network.parameters())
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.skipif(not BFLOAT16, reason='this processor has no bfloat16')
@pytest.mark.parametrize('family', ['RepLKNet', 'ConvNeXt', 'UniRepLKNet'])
def test_bfloat16(family):
    network = fill(MODELS.build(dict(type=f'mmlk.{family}', arch=copy.deepcopy(TINY[family])))).eval()
    fast = optimize(network, image(1, 3, 64, 64), torch.bfloat16)
    assert fast.dtype == torch.bfloat16 and 1e-4 < fast.optimization.difference < 0.1
    same(network, fast, (1, 3, 64, 64), (1, 3, 100, 120), tolerance=0.05)


@pytest.mark.parametrize('change, message', [
    (lambda a: a.update(dtype=torch.float64), 'dtype must be float32, bfloat16 or float16'),
    (lambda a: a.update(dtype=torch.float16), 'does not compute in float16'),
    (lambda a: a.update(example=image(3, 64, 64)), r'images \(N, C, H, W\)'),
])
def test_bad_arguments_are_refused(change, message):
    arguments = dict(model=nn.Conv2d(3, 3, 1), example=image(1, 3, 64, 64))
    change(arguments)
    with pytest.raises(ValueError, match=message):
        optimize(**arguments)


def test_a_wrong_result_is_not_used(monkeypatch):
    monkeypatch.setattr(FusedConv, 'pack', lambda self, pack=FusedConv.pack: (self.scale(torch.full(
        (self.out_channels, ), 1.01)), pack(self)))
    with pytest.raises(ValueError, match='differs by .* so it is not used'):
        optimize(fill(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), image(1, 3, 96, 96))


@pytest.mark.parametrize('name', [*ACTIVATIONS, 'gelu', 'gelu of tanh'])
@pytest.mark.parametrize('shape, settings', [
    ((6, 3, 3, 5), dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2))),
    ((6, 2, 1, 1), dict(groups=3)),
    ((6, 1, 5, 5), dict(groups=6, padding=(2, 2))),
    ((6, 6, 1, 1), {}),
])
def test_convolutions_with_activations(name, shape, settings):
    x = image(2, shape[1] * settings.get('groups', 1), 11, 13)
    weight, bias = image(*shape, seed=1), image(shape[0], seed=2)
    algorithm = 'tanh' if 'tanh' in name[5:] else 'none'
    function = ACTIVATIONS.get(name) or (lambda y: F.gelu(y, approximate=algorithm))
    for b in (bias, None):
        conv = FusedConv(weight, b, size=x.shape, **settings)
        conv.activation = Activation(name.split()[0], algorithm=algorithm if 'gelu' in name else '')
        conv.pack()
        with torch.no_grad():
            expected = function(F.conv2d(x, weight, b, **settings))
            assert relative_error(conv(x), expected) < 1e-6
            assert relative_error(conv(x[:1, :, :9]), function(F.conv2d(x[:1, :, :9], weight, b, **settings))) < 1e-6


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('shape, settings', [((512, 128, 1, 1), {}), ((64, 32, 3, 3), dict(padding=(1, 1)))])
def test_the_weight_is_in_the_order_of_each_size(dtype, shape, settings):
    """A weight in another order is put into the right one in each call, which can take ten times the convolution."""
    if not fused.available(dtype):
        pytest.skip(f'this processor has no {dtype}')
    weight = image(*shape).to(dtype)
    conv = FusedConv(weight, None, size=(1, shape[1], 32, 32), **settings)
    conv.pack()
    orders = set()
    for side in (32, 4, 16, 64, 1, 32, 9):
        x = image(1, shape[1], side, side).to(dtype)
        with torch.no_grad():
            assert relative_error(conv(x).float(), F.conv2d(x.float(), weight.float(), **settings)) < (
                1e-6 if dtype == torch.float32 else 1e-2)
        used = next(reversed(conv.packed))  # the one used last
        wanted = torch.ops.mkldnn._reorder_convolution_weight(weight, *conv.settings, x.shape)
        assert used == fused._order_of(wanted)
        assert len(conv.packed) <= fused._MAX_ORDERS
        orders.add(used)
    assert len(orders) > 1 or shape[2] != 1, 'no size of this test needs another order on this processor'
    conv.drop_other_sizes()
    order, = conv.packed
    assert order == fused._order_of(torch.ops.mkldnn._reorder_convolution_weight(weight, *conv.settings, conv.size))


@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('activation', ['none', 'relu'])
@pytest.mark.parametrize('last', [False, True])
def test_sums(inplace, activation, last):
    x, other, weight = image(2, 5, 7, 6), image(2, 4, 7, 6, seed=1), image(4, 5, 1, 1, seed=2)
    if last:
        other = other.contiguous(memory_format=torch.channels_last)
    conv = FusedConv(weight, None)
    conv.activation, conv.inplace = Activation(activation), inplace
    conv.pack()
    expected, given = ACTIVATIONS[activation](F.conv2d(x, weight) + other), other.clone()
    with torch.no_grad():
        out = conv(x, other)
    assert relative_error(out, expected) < 1e-6
    assert torch.equal(other, given) is not (inplace and last), 'only a map in channels_last can be overwritten'


@pytest.mark.parametrize('size', [(1, 6, 9, 7), (2, 6, 1, 40), (3, 6, 5, 5)])
def test_feed_forward_in_parts(size, monkeypatch):
    first, second = (linear(image(*shape, seed=seed), image(shape[0]), None)
                     for seed, shape in enumerate(((20, 6), (6, 20))))
    first.activation, second.inplace = Activation('gelu', algorithm='none'), True
    weights = [(conv.plain[0], conv.plain[1]) for conv in (first, second)]
    first.pack()
    second.pack()
    x = image(*size).contiguous(memory_format=torch.channels_last)
    expected = x + F.conv2d(F.gelu(F.conv2d(x, *weights[0])), *weights[1])
    for large, part in ((1 << 23, 1), (1, 20 * 8), (1, 1)):
        monkeypatch.setattr(fused, '_LARGE', large)
        monkeypatch.setattr(fused, '_PART', part)
        with torch.no_grad():
            given = x.clone(memory_format=torch.channels_last)
            assert relative_error(FeedForward(first, second)(given, given), expected) < 1e-6
            contiguous = x.contiguous()
            assert relative_error(FeedForward(first, second)(contiguous, contiguous), expected) < 1e-6


def test_a_map_and_its_pixels_share_memory():
    x = image(2, 3, 4, 5)
    assert image_of(x).data_ptr() == x.data_ptr() and image_of(x).shape == (1, 5, 24, 1)
    y = x.contiguous(memory_format=torch.channels_last)
    assert fused.pixels_of(y).data_ptr() == y.data_ptr() and torch.equal(fused.pixels_of(y)[7], x[0, :, 1, 2])


@pytest.mark.parametrize('size', [(1, 3, 16, 16), (2, 3, 7, 9), (1, 3, 1, 1), (1, 3, 33, 130)])
@pytest.mark.parametrize('name', ['none', 'relu', 'swish', 'gelu'])
def test_winograd(size, name, monkeypatch):
    from mmlk.deploy import winograd
    weight, bias = image(5, 3, 3, 3, seed=1), image(5, seed=2)
    function = ACTIVATIONS.get(name, F.gelu)
    for tiles in (1, 256):
        monkeypatch.setattr(winograd, '_TILES', tiles)
        for b in (bias, None):
            conv = FusedConv(weight, b, padding=(1, 1), size=size)
            conv.activation = Activation(name, algorithm='none' if name == 'gelu' else '')
            layer = WinogradConv(conv)
            for product in layer.products:
                product.pack()
            x = image(*size)
            expected = function(F.conv2d(x.double(), weight.double(), None if b is None else b.double(), padding=1))
            with torch.no_grad():
                out = layer(x)
                assert relative_error(out, expected) < 1e-5
                assert out.is_contiguous(memory_format=torch.channels_last)
                half = layer(x.bfloat16())
                assert half.dtype == torch.bfloat16 and relative_error(half, expected) < 2e-2


def test_wide_3x3_convolutions_are_filtered_minimally():
    network = fill(nn.Sequential(nn.Conv2d(3, 256, 3, padding=1), nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
                                 nn.Conv2d(256, 256, 3, padding=1, stride=2), nn.Conv2d(256, 8, 3, padding=1))).eval()
    fast = optimize(network, image(1, 3, 96, 96))
    assert fast.optimization.fused['Winograd convolutions'] == len(layers(fast, WinogradConv)) == 1
    same(network, fast, (1, 3, 96, 96), (2, 3, 97, 130))


def test_large_depthwise_kernels_are_the_operators():
    network = fill(nn.Sequential(nn.Conv2d(3, 3, 9, padding=4, groups=3), nn.Conv2d(3, 3, 8, padding='same', groups=3),
                                 nn.Conv2d(3, 3, 9, padding=3, groups=3), nn.Conv2d(3, 6, 9, padding=4, groups=3)))
    fast = optimize(network.eval(), image(1, 3, 96, 96))
    assert [node.target for node in fast.graph.graph.nodes].count(depthwise_conv2d) == 1
    same(network, fast, (1, 3, 96, 96), (1, 3, 101, 99))
