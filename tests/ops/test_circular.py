"""Global circular convolution and ParC: both forms against the definition, and inside PyTorch."""
import copy

import pytest
import torch

from mmlk.backbones import ConvNeXt, RepLKNet
from mmlk.ops import set_memory_format
from mmlk.ops.circular import METHODS, cheapest, circular_conv
from mmlk.ops.parc import GlobalConv, ParC, ParCOperator, insert_parc, resized
from mmlk.reparam import merge
from tests.ops.cases import TOLERANCE
from tests.utils import fill, image, relative_error

SHAPES = [  # N, C, H, W, channels out, groups
    (2, 4, 7, 5, 4, 4), (1, 3, 1, 6, 3, 3), (2, 2, 6, 1, 2, 2), (1, 1, 1, 1, 1, 1), (1, 2, 41, 32, 2, 2),
    (2, 4, 6, 7, 4, 1), (1, 6, 5, 9, 4, 2), (2, 4, 8, 5, 8, 4), (3, 5, 4, 33, 1, 1),
]


def tensors(shape, axis, dtype=torch.float64):
    """Input, weight and bias of a case, leaves that require gradients; axis 2 is H, 3 is W."""
    n, c, h, w, outputs, groups = shape
    kernel = (h, 1) if axis == 2 else (1, w)
    return [torch.randn(s).to(dtype).requires_grad_()
            for s in ((n, c, h, w), (outputs, c // groups, *kernel), (outputs, ))]


def reference(x, weight, bias, axis):
    """The definition: for each tap, the map rolled against it, times a matrix over the channels; in float64."""
    x, weight, bias = (t.double() for t in (x, weight, bias))
    outputs, inputs = weight.shape[:2]
    groups = x.shape[1] // inputs
    taps = weight.movedim(axis, 0).reshape(x.shape[axis], outputs, inputs)
    out = bias.reshape(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])
    for k, tap in enumerate(taps):
        moved = x.roll(-k, axis)
        parts = [torch.einsum('oi,nihw->nohw', m, part)
                 for m, part in zip(tap.chunk(groups), moved.chunk(groups, 1))]
        out = out + torch.cat(parts, 1)
    return out


@pytest.mark.parametrize('dtype', TOLERANCE, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize('axis', [2, 3], ids=['h', 'w'])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('method', [*METHODS, None])
def test_equals_the_definition_with_all_gradients(method, shape, axis, dtype):
    leaves = tensors(shape, axis, dtype)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    out, expected = circular_conv(*leaves, method=method), reference(*exact, axis)
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    expected.backward(grad.double())
    for ours, theirs in zip([out, *(t.grad for t in leaves)], [expected, *(t.grad for t in exact)]):
        assert ours.dtype == dtype
        assert relative_error(ours, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize('axis', [2, 3])
@pytest.mark.parametrize('shape', [(1, 96, 64, 57), (2, 8, 128, 96), (1, 24, 100, 31)], ids=str)
def test_both_forms_are_equal_at_the_sizes_of_dense_prediction(shape, axis):
    for groups in (shape[1], 1):
        x, weight, bias = (t.detach() for t in tensors((*shape, shape[1], groups), axis, torch.float32))
        direct, fft = (circular_conv(x, weight, bias, method=method) for method in METHODS)
        assert relative_error(fft, direct) < 1e-5


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('shape', [(2, 2, 3, 4, 2, 2), (1, 4, 3, 2, 2, 2)], ids=str)
def test_gradcheck_twice(method, shape):
    for axis in (2, 3):
        leaves = tensors(shape, axis)
        assert torch.autograd.gradcheck(lambda *t: circular_conv(*t, method=method), leaves)
        assert torch.autograd.gradgradcheck(lambda *t: circular_conv(*t, method=method), leaves)


@pytest.mark.parametrize('method', METHODS)
def test_it_goes_round_and_is_not_flipped(method):
    x, weight = torch.randn(2, 3, 6, 8, dtype=torch.float64), torch.randn(3, 1, 6, 1, dtype=torch.float64)
    out = circular_conv(x, weight, method=method)
    assert relative_error(circular_conv(x.roll(2, 2), weight, method=method), out.roll(2, 2)) < 1e-14
    delta = torch.zeros(3, 1, 6, 1, dtype=torch.float64)
    delta[:, :, 1] = 1  # the tap that reads one pixel further on
    assert relative_error(circular_conv(x, delta, method=method), x.roll(-1, 2)) < 1e-14


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('groups', [8, 1])
def test_memory_format_is_kept(method, groups):
    x = torch.randn(2, 16, 9, 13)
    for axis in (2, 3):
        weight = tensors((2, 8, 9, 13, 8, groups), axis, torch.float32)[1].detach()
        expected = circular_conv(x[:, 8:], weight)
        for last in (False, True):
            half = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)[:, 8:]
            out = circular_conv(half, weight, method=method)
            assert out.is_contiguous(memory_format=torch.channels_last) is last
            assert out.is_contiguous() is not last
            assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize('method', [*METHODS, None])
def test_empty_batch(method):
    leaves = tensors((0, 3, 40, 41, 3, 3), 3)
    out = circular_conv(*leaves, method=method)
    assert out.shape == (0, 3, 40, 41)
    out.sum().backward()
    assert leaves[0].grad.shape == (0, 3, 40, 41) and not leaves[1].grad.any()


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(method, dtype):
    x, weight, bias = (t.detach() for t in tensors((1, 4, 9, 6, 4, 1), 2, torch.float32))
    expected = circular_conv(x, weight, bias, method=method)
    with torch.autocast('cpu', dtype=dtype):
        assert torch.equal(circular_conv(x, weight, bias, method=method), expected)
        half = circular_conv(x.to(dtype), weight, bias, method=method)
    assert half.dtype == dtype
    assert relative_error(half, circular_conv(x.to(dtype).float(), weight, bias)) < TOLERANCE[dtype]


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason='without MKL all go directly')
def test_long_axes_go_by_fft_and_short_ones_directly():
    def choice(shape, axis, groups, learning=False, memory_format=torch.contiguous_format):
        x, weight, _ = (t.detach() for t in tensors((*shape, shape[1], groups), axis, torch.float32))
        x = x.contiguous(memory_format=memory_format)
        return cheapest(x.requires_grad_(learning), weight.requires_grad_(learning), axis)

    assert choice((1, 96, 14, 14), 2, 96) == choice((1, 192, 7, 7), 3, 192, learning=True) == 'direct'
    assert choice((1, 96, 64, 64), 2, 96) == choice((1, 48, 100, 168), 3, 48) == 'fft'
    # the weight's gradient along W is what the direct form is slow at
    assert choice((2, 192, 16, 16), 3, 192) == choice((2, 192, 16, 16), 2, 192, learning=True) == 'direct'
    assert choice((2, 192, 16, 16), 3, 192, learning=True) == 'fft'
    # channels_last is the faster layout of the direct form, and the slower of the transforms
    assert choice((1, 96, 48, 48), 2, 96) == choice((1, 48, 128, 128), 3, 48, False, torch.channels_last) == 'fft'
    assert choice((1, 96, 48, 48), 2, 96, False, torch.channels_last) == 'direct'
    assert choice((2, 256, 7, 7), 2, 1) == 'direct' and choice((1, 128, 50, 84), 3, 1) == 'fft'
    assert cheapest(torch.empty(1, 4, 99, 99, device='meta'), torch.empty(4, 1, 99, 1, device='meta'), 2) == 'direct'


@pytest.mark.parametrize('shapes, problem', [
    (((4, 8, 8), (4, 1, 8, 1)), r'takes input \(N, C, H, W\)'),
    (((1, 4, 8, 9), (4, 1, 9, 1)), 'on a 8x9 map is 8x1 or 1x9, got 9x1'),
    (((1, 4, 8, 8), (4, 1, 8, 8)), 'on a 8x8 map is 8x1 or 1x8, got 8x8'),
    (((1, 4, 8, 9), (4, 3, 8, 1)), 'does not divide into groups of 4 channels'),
    (((1, 4, 8, 9), (3, 2, 8, 1)), 'does not divide into groups of 4 channels'),
    (((1, 4, 8, 9), (4, 1, 8, 1), (3, )), r'bias must have shape \(4,\), got \(3,\)'),
])
def test_wrong_shapes_are_refused(shapes, problem):
    with pytest.raises(ValueError, match=problem):
        circular_conv(*(torch.randn(s) for s in shapes))
    with pytest.raises(ValueError, match="method must be one of direct, fft or None, got 'dft'"):
        circular_conv(torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 1), method='dft')


def test_resizing_is_linear_between_the_corners():
    kernel = torch.tensor([0., 2., 6.]).reshape(1, 1, 3, 1)
    assert resized(kernel, (5, 1)).flatten().tolist() == [0, 1, 2, 4, 6]
    assert resized(kernel, (2, 1)).flatten().tolist() == [0, 6]
    assert resized(kernel, (3, 1)) is kernel
    half = resized(torch.tensor([1., 1.001]).half().reshape(1, 1, 1, 2), (1, 3))
    assert half.dtype == torch.float32 and half.flatten()[1] == pytest.approx((1 + half.flatten()[2].item()) / 2)


def test_operator_adds_the_position_then_convolves():
    for axis, kernel in (('h', (6, 1)), ('w', (1, 6))):
        operator = fill(ParCOperator(4, 6, axis)).double()
        assert {name: tuple(p.shape) for name, p in operator.named_parameters()} == {
            'gcc_conv.weight': (4, 1, *kernel), 'gcc_conv.bias': (4, ), 'pe': (1, 4, *kernel)}
        x = image(2, 4, 9, 7).double()
        size = (9, 1) if axis == 'h' else (1, 7)
        conv = operator.gcc_conv
        expected = reference(x + resized(operator.pe, size), resized(conv.weight, size), conv.bias,
                             2 if axis == 'h' else 3)
        assert relative_error(operator(x), expected) < 1e-13
        # a kernel of one tap says nothing of its axis
        one = fill(ParCOperator(4, 1, axis)).double()
        conv, taps = one.gcc_conv, one.gcc_conv.weight.expand(-1, -1, *size)
        assert relative_error(one(x), reference(x + one.pe, taps, conv.bias, 2 if axis == 'h' else 3)) < 1e-13
        plain = ParCOperator(4, 6, axis, use_pe=False)
        assert list(dict(plain.named_parameters())) == ['gcc_conv.weight', 'gcc_conv.bias']


def test_parc_halves_the_channels():
    net = fill(ParC(6, (5, 4), groups=1))
    assert tuple(net.gcc_H.gcc_conv.weight.shape) == (3, 3, 5, 1) and tuple(net.gcc_W.pe.shape) == (1, 3, 1, 4)
    x = image(2, 6, 8, 9)
    assert torch.equal(net(x), torch.cat((net.gcc_H(x[:, :3]), net.gcc_W(x[:, 3:])), 1))
    half = net.half()(x.half())
    assert half.dtype == torch.float16 and relative_error(half, net.float()(x)) < 2e-3
    with pytest.raises(ValueError, match='must be even; got 5'):
        ParC(5, 7)
    with pytest.raises(ValueError, match="axis must be 'h' or 'w', got 'x'"):
        GlobalConv(4, 7, 'x')
    with pytest.raises(ValueError, match='4 channels do not divide into 3 groups'):
        GlobalConv(4, 7, 'h', groups=3)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_compiled_equals_eager_without_a_graph_break(memory_format):
    torch.compiler.reset()
    net = fill(ParC(4, 7))
    x = image(2, 4, 40, 44).contiguous(memory_format=memory_format)  # by FFT
    results = []
    for run in (net, torch.compile(net, backend='aot_eager', fullgraph=True)):
        net.zero_grad()
        leaf = x.clone().requires_grad_()
        out = run(leaf)
        out.square().sum().backward()
        results.append([out, leaf.grad, *(p.grad.clone() for p in net.parameters())])
    for eager, compiled in zip(*results):
        assert relative_error(compiled, eager) < 1e-5
    assert results[1][0].stride() == results[0][0].stride() == x.stride()


def test_exports_as_plain_convolutions():
    net, x = fill(ParC(4, 7)).eval(), image(1, 4, 40, 44)
    for strict in (False, True):
        program = torch.export.export(net, (x, ), strict=strict)
        targets = [str(node.target) for node in program.graph.nodes]
        assert targets.count('aten.conv2d.default') == 2 and not any('fft' in target for target in targets)
        assert relative_error(program.module()(x), net(x)) < 1e-5
    traced = torch.jit.trace(net, x)
    assert str(traced.inlined_graph).count('aten::_convolution') == 2
    assert relative_error(traced(x), net(x)) < 1e-5


def test_exported_graphs_take_other_sizes():
    net, x = fill(ParC(4, 7)).eval(), image(1, 4, 7, 44)  # at its native height, which must not be taken for granted
    sides = {2: torch.export.Dim('height', min=3), 3: torch.export.Dim('width', min=3)}
    program = torch.export.export(net, (x, ), dynamic_shapes=(sides, )).module()
    traced = torch.jit.trace(net, x, check_trace=False)
    for size in ((7, 44), (12, 7), (9, 30)):
        other = image(1, 4, *size)
        for graph in (program, traced):
            assert relative_error(graph(other), net(other)) < 1e-5


@pytest.mark.parametrize('dynamo', [False, True])
def test_onnx_has_two_convs_and_the_same_output(dynamo, tmp_path):
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    net, x, path = fill(ParC(4, 7)).eval(), image(1, 4, 40, 44), str(tmp_path / 'net.onnx')
    torch.onnx.export(net, (x, ), path, dynamo=dynamo, input_names=['x'])
    assert [node.op_type for node in onnx.load(path).graph.node].count('Conv') == 2
    out, = runtime.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'x': x.numpy()})
    assert relative_error(torch.from_numpy(out), net(x)) < 1e-5


def places(model):
    return {name: tuple(m.gcc_H.gcc_conv.weight.shape) for name, m in model.named_modules() if isinstance(m, ParC)}


def learns_everywhere(model, x):
    out = model.train()(x)
    sum((t**2).mean() for t in (out if isinstance(out, tuple) else (out, ))).backward()
    lost = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    return not lost


def test_insert_parc_into_timms_convnext():
    timm = pytest.importorskip('timm')
    model = timm.create_model('convnext_atto', num_classes=7).eval()
    kept = {id(p) for p in model.parameters()}
    assert insert_parc(model, ['stages.2', 'stages.3']) is model and not model.training
    assert places(model) == {'stages.2.blocks.4.conv_dw': (80, 1, 14, 1), 'stages.2.blocks.5.conv_dw': (80, 1, 14, 1),
                             'stages.3.blocks.1.conv_dw': (160, 1, 7, 1)}
    assert not any(m.training for m in model.modules())
    assert sum(id(p) in kept for p in model.parameters()) == len(list(model.parameters())) - 3 * 6
    assert learns_everywhere(fill(model), image(2, 3, 75, 96))


def test_insert_parc_into_our_convnext():
    model = ConvNeXt(dict(depths=(1, 1, 3, 3), dims=(8, 8, 12, 16)))
    insert_parc(model, {'stages.2': 2, 'stages.3.2': 1}, image_size=(64, 96))
    assert places(model) == {'stages.2.1.dwconv': (6, 1, 4, 1), 'stages.2.2.dwconv': (6, 1, 4, 1),
                             'stages.3.2.dwconv': (8, 1, 2, 1)}
    assert model.stages[3][2].dwconv.gcc_W.pe.shape == (1, 8, 1, 3)
    assert learns_everywhere(fill(model), image(2, 3, 64, 64))
    large = RepLKNet(dict(large_kernel_sizes=(5, 5), layers=(1, 2), channels=(4, 4), small_kernel=3),
                     out_indices=(1, ))
    with pytest.raises(ValueError, match="'stages.1' has parallel branches; merge them first"):
        insert_parc(large, ['stages.1'])
    insert_parc(merge(large, inplace=True), ['stages.1'], sizes={'stages.1': (4, 8)})
    assert places(large) == {'stages.1.blocks.2.large_kernel.lkb_reparam': (2, 1, 4, 1)} and large.merged


@pytest.mark.parametrize('maker', ['torchvision', 'timm'])
def test_insert_parc_into_resnet50_gives_the_papers_layers(maker):
    library = pytest.importorskip(maker)
    model = library.models.resnet50() if maker == 'torchvision' else library.create_model('resnet50')
    before = copy.deepcopy(model.bn1.state_dict())
    insert_parc(model, {'layer3': 3, 'layer4': 1})
    assert places(model) == {**{f'layer3.{i}.conv2': (128, 128, 14, 1) for i in (3, 4, 5)},
                             'layer4.2.conv2': (256, 256, 7, 1)}
    assert all(torch.equal(v, before[k]) for k, v in model.bn1.state_dict().items()) and model.training


@pytest.mark.parametrize('maker, stages', [
    ('torchvision', {'features.9': 1, 'features.10': 1, 'features.13': 1, 'features.16': 1}),
    ('timm', {'blocks.3': 2, 'blocks.4': 1, 'blocks.5': 1})])
def test_insert_parc_into_mobilenetv2_gives_the_papers_layers(maker, stages):
    library = pytest.importorskip(maker)
    model = library.models.mobilenet_v2() if maker == 'torchvision' else library.create_model('mobilenetv2_100')
    insert_parc(model, stages)
    assert list(places(model).values()) == [(192, 1, 14, 1)] * 2 + [(288, 1, 14, 1), (480, 1, 7, 1)]
    with torch.no_grad():
        assert model.eval()(image(1, 3, 96, 75)).shape == (1, 1000)


@pytest.mark.parametrize('stages, other, problem', [
    (['stage2'], {}, "ConvNeXt has no stage 'stage2'; it has downsample_layers, .*stages"),
    (['downsample_layers'], {}, "'downsample_layers' has no convolution to replace"),
    ({'stages.1': 2}, {}, "'stages.1' has 1 convolutions to replace, not 2"),
    ({'stages.0': 1}, {}, 'stages.0.0.dwconv has an odd number'),
    ([], {}, 'at least one stage'),
    (['stages.1'], dict(sizes={'stages.0': 7}), 'sizes lacks stages.1'),
])
def test_insert_parc_says_what_is_wrong_and_changes_nothing(stages, other, problem):
    model = ConvNeXt(dict(depths=(1, 1), dims=(3, 4)), out_indices=(1, ))
    with pytest.raises(ValueError, match=problem):
        insert_parc(model, stages, **other)
    assert not places(model)


def test_insert_parc_keeps_dtype_and_the_memory_format_of_the_network():
    model = insert_parc(ConvNeXt(dict(depths=(1, 1), dims=(4, 4)), out_indices=(1, )).double(), ['stages.1'])
    assert model.stages[1][0].dwconv.gcc_H.pe.dtype == torch.float64
    set_memory_format(model, 'channels_last')
    seen = []
    model.stages[1][0].dwconv.register_forward_hook(lambda m, args, out: seen.append((args[0].stride(), out.stride())))
    model(image(1, 3, 64, 64).double())
    assert seen[0][0] == seen[0][1] and seen[0][0][1] == 1
