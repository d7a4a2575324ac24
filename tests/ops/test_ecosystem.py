"""The operator inside PyTorch: modules, autocast, compile, export, checkpointing, DDP."""
import copy
import pickle
from datetime import timedelta

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from mmlk.ops import DepthwiseConv2d, depthwise_conv2d, replace_depthwise
from mmlk.ops.backends import dft, get, remembered
from mmlk.ops.reference import depthwise_conv2d_reference
from tests.ops.cases import ON_CPU, TOLERANCE, tensors
from tests.utils import relative_error


def test_module_is_a_conv2d_with_the_same_state_dict():
    ours = DepthwiseConv2d(4, 31)
    stock = nn.Conv2d(4, 4, 31, padding=15, groups=4)
    for name in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups',
                 'padding_mode'):
        assert getattr(ours, name) == getattr(stock, name)
    stock.load_state_dict(ours.state_dict())
    x = torch.randn(1, 4, 18, 20)
    assert relative_error(ours(x), stock(x)) < TOLERANCE[torch.float32]
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert relative_error(copied(x), ours(x)) < TOLERANCE[torch.float32]
    assert DepthwiseConv2d(4, (4, 7)).padding == 'same'


def test_shapes_dtypes_and_devices_that_do_not_fit_are_refused():
    x = torch.randn(1, 2, 8, 8)
    with pytest.raises(ValueError, match=r'got \(1, 2, 8, 8\) and \(3, 1, 7, 7\)'):
        depthwise_conv2d(x, torch.randn(3, 1, 7, 7))
    with pytest.raises(ValueError, match=r'bias must have shape \(2,\)'):
        depthwise_conv2d(x, torch.randn(2, 1, 7, 7), torch.randn(3))
    with pytest.raises(ValueError, match='one dtype and device, got torch.float32 on cpu and torch.float64 on cpu'):
        depthwise_conv2d(x, torch.randn(2, 1, 7, 7).double())
    with pytest.raises(ValueError, match='got torch.float32 on cpu and torch.float32 on meta'):
        depthwise_conv2d(x, torch.randn(2, 1, 7, 7, device='meta'))


def test_meta_tensors():
    conv = DepthwiseConv2d(4, 31).to('meta')
    out = conv(torch.empty(1, 4, 9, 9, device='meta'))
    assert out.shape == (1, 4, 9, 9) and out.device.type == 'meta'


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('backend', [*ON_CPU, None])
def test_autocast_rounds_what_comes_and_goes_only(backend, dtype):
    leaves, grad = tensors((2, 4, 32, 32, 15, 15)), torch.randn(2, 4, 32, 32).to(dtype)
    rounded = [t.detach().to(dtype).double().requires_grad_() for t in leaves]
    expected = depthwise_conv2d_reference(*rounded)
    with torch.autocast('cpu', dtype=dtype):
        out = depthwise_conv2d(*leaves, backend=backend)
        grads = torch.autograd.grad(out, leaves, grad)
    assert out.dtype == dtype and all(g.dtype == torch.float32 for g in grads)
    for ours, theirs in zip((out, *grads), (expected, *torch.autograd.grad(expected, rounded, grad.double()))):
        assert relative_error(ours, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    conv = DepthwiseConv2d(4, 13)
    x = torch.randn(2, 4, 16, 16, requires_grad=True)
    rounded = [t.to(dtype) for t in (x, conv.weight, conv.bias)]
    with torch.autocast('cpu', dtype=dtype):
        out = conv(x)
    assert out.dtype == dtype and relative_error(out, depthwise_conv2d_reference(*rounded)) < TOLERANCE[dtype]
    out.float().sum().backward()
    assert x.grad.dtype == conv.weight.grad.dtype == torch.float32
    with torch.autocast('cpu', dtype=dtype):
        assert conv.double()(x.double()).dtype == torch.float64


class Net(nn.Module):

    def __init__(self, kernel=(13, 9)):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), DepthwiseConv2d(4, kernel)

    def forward(self, x):
        return self.second(self.first(x).relu())


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_compiled_equals_eager_without_a_graph_break(memory_format):
    torch.compiler.reset()
    net = Net()
    x = torch.randn(2, 3, 14, 17).contiguous(memory_format=memory_format)
    compiled = torch.compile(net, backend='aot_eager', fullgraph=True)
    results = []
    for run in (net, compiled):
        net.zero_grad()
        leaf = x.clone().requires_grad_()
        out = run(leaf)
        out.square().sum().backward()
        results.append([out, leaf.grad, *(p.grad.clone() for p in net.parameters())])
    for eager, other in zip(*results):
        assert relative_error(other, eager) < 1e-5
        assert other.stride() == eager.stride()
    with torch.no_grad():
        assert relative_error(compiled(x), net(x)) < 1e-5


def test_the_compilers_operators_keep_their_contract():
    x, w, b = torch.randn(2, 3, 8, 9, requires_grad=True), torch.randn(3, 1, 5, 4, requires_grad=True), torch.randn(3)
    for args in ((x, w, b, None), (x.detach().contiguous(memory_format=torch.channels_last), w, None, 'fft')):
        torch.library.opcheck(torch.ops.mmlk.depthwise_conv2d.default, args)


def convolutions(graph):
    return [str(node.target) for node in graph.nodes if node.op == 'call_function' and 'conv' in str(node.target)]


@pytest.mark.parametrize('kernel', [(31, 31), (5, 51)], ids=str)
def test_exports_as_plain_convolutions(kernel):
    net, x = Net(kernel).eval(), torch.randn(1, 3, 12, 12)
    for strict in (False, True):
        program = torch.export.export(net, (x, ), strict=strict)
        assert convolutions(program.graph) == ['aten.conv2d.default'] * 2
    traced = torch.jit.trace(net, x)
    assert str(traced.inlined_graph).count('aten::_convolution') == 2
    assert relative_error(traced(x), net(x)) < 1e-5


@pytest.mark.parametrize('dynamo', [False, True])
def test_onnx_has_one_conv_per_module_and_the_same_output(dynamo, tmp_path):
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    net, x, path = Net().eval(), torch.randn(1, 3, 12, 15), str(tmp_path / 'net.onnx')
    torch.onnx.export(net, (x, ), path, dynamo=dynamo, input_names=['x'])
    assert [node.op_type for node in onnx.load(path).graph.node].count('Conv') == 2
    out, = runtime.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'x': x.numpy()})
    assert relative_error(torch.from_numpy(out), net(x)) < 1e-5


@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpointing_gives_the_same_gradients(reentrant):
    net, x = Net(), torch.randn(1, 3, 12, 12, requires_grad=True)
    net(x).sum().backward()
    expected = [x.grad, *(p.grad for p in net.parameters())]
    x.grad = None
    net.zero_grad()
    checkpoint(net, x, use_reentrant=reentrant).sum().backward()
    for grad, plain in zip([x.grad, *(p.grad for p in net.parameters())], expected):
        assert relative_error(grad, plain) < 1e-6


def test_checkpointing_goes_on_when_the_method_changes_in_between(monkeypatch):
    x, weight = torch.randn(2, 4, 16, 16, requires_grad=True), torch.randn(4, 1, 13, 13, requires_grad=True)
    plain = nn.functional.conv2d(x, weight, padding=6, groups=4)
    expected = torch.autograd.grad(plain.sin().square().sum(), (x, weight))
    names = iter(['native', 'fft'])  # in the forward pass, and measured to be faster before the recomputation
    monkeypatch.setattr('mmlk.ops.depthwise.choose', lambda step, problem, run, weight: (get(next(names), problem), ''))
    out = checkpoint(lambda *inputs: depthwise_conv2d(*inputs).sin(), x, weight, use_reentrant=False)
    for gradient, reference in zip(torch.autograd.grad(out.square().sum(), (x, weight)), expected):
        assert relative_error(gradient, reference) < 1e-5


def test_ddp(monkeypatch):
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')  # else it asks the resolver for this machine's name
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1,
                                         timeout=timedelta(seconds=60))
    try:
        net = Net()
        copied = nn.parallel.DistributedDataParallel(copy.deepcopy(net))
        x = torch.randn(2, 3, 12, 12)
        net(x).square().sum().backward()
        copied(x).square().sum().backward()
        for ours, theirs in zip(copied.module.parameters(), net.parameters()):
            assert relative_error(ours.grad, theirs.grad) < 1e-6
    finally:
        torch.distributed.destroy_process_group()


def test_function_transforms_and_forward_mode():
    x, weight = torch.randn(3, 1, 4, 9, 8), torch.randn(4, 1, 7, 7)
    several = torch.stack([weight, weight.flip(-1), 2 * weight])
    each = torch.stack([depthwise_conv2d(image, taps) for image, taps in zip(x, several)])
    assert relative_error(torch.vmap(depthwise_conv2d)(x, several), each) < TOLERANCE[torch.float32]
    last = x.permute(1, 3, 4, 2, 0)  # the images, in channels_last, along the last dimension
    mapped = torch.vmap(lambda image: depthwise_conv2d(image.permute(0, 3, 1, 2), weight, backend='fft'), -1)(last)
    assert relative_error(mapped, depthwise_conv2d(x[:, 0], weight)[:, None]) < TOLERANCE[torch.float32]

    def loss(taps, image):
        return depthwise_conv2d(image, taps).square().sum()

    leaves = [weight.clone().requires_grad_() for _ in x]
    wanted = [torch.autograd.grad(loss(leaf, image), leaf)[0] for leaf, image in zip(leaves, x)]
    per_sample = torch.vmap(torch.func.grad(loss), (None, 0))(weight, x)
    assert relative_error(per_sample, torch.stack(wanted)) < TOLERANCE[torch.float32]
    direction = torch.randn_like(weight)
    _, along = torch.func.jvp(lambda taps: loss(taps, x[0]), (weight,), (direction,))
    assert relative_error(along, (wanted[0] * direction).sum()) < TOLERANCE[torch.float32]
    with forward_ad.dual_level():
        value = loss(forward_ad.make_dual(weight, direction), x[0])
        assert relative_error(forward_ad.unpack_dual(value).tangent, along) < TOLERANCE[torch.float32]


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('backend', [*ON_CPU, None])
def test_several_gradients_at_once(backend, memory_format):
    x, weight, bias = (t.detach().requires_grad_() for t in tensors((2, 3, 8, 9, 5, 6)))
    out = depthwise_conv2d(x.contiguous(memory_format=memory_format), weight, bias, backend=backend)
    grads = torch.randn(4, *out.shape)
    at_once = torch.autograd.grad(out, (x, weight, bias), grads, is_grads_batched=True, retain_graph=True)
    each = zip(*(torch.autograd.grad(out, (x, weight, bias), grad, retain_graph=True) for grad in grads))
    for ours, theirs in zip(at_once, each):
        assert relative_error(ours, torch.stack(theirs)) < TOLERANCE[torch.float32]

    def function(weight, bias):
        return depthwise_conv2d(x[:1, :, :3, :3].detach(), weight, bias, backend=backend)

    for ours, theirs in zip(*(torch.autograd.functional.jacobian(function, (weight, bias), vectorize=vectorize)
                              for vectorize in (True, False))):
        assert relative_error(ours, theirs) < TOLERANCE[torch.float32]


def test_the_compilers_operator_can_be_differentiated_twice():
    x, weight, bias = tensors((2, 2, 4, 3, 3, 4), torch.float64)

    def run(*args):
        return torch.ops.mmlk.depthwise_conv2d(*args, 'fft')

    assert torch.autograd.gradgradcheck(run, (x, weight, bias))
    for learn in ((True, False), (False, True)):
        leaves = [t.detach().requires_grad_(need) for t, need in zip((x, weight), learn)]
        assert torch.autograd.gradgradcheck(run, (*leaves, bias))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_gradients_of_a_graph_that_is_kept_are_as_exact_as_others(dtype):
    x, weight, _ = tensors((1, 2, 40, 40, 31, 31), dtype)
    grad = torch.randn(1, 2, 40, 40).to(dtype)
    wanted = [t.detach().double().requires_grad_() for t in (x, weight)]
    expected = torch.autograd.grad(depthwise_conv2d_reference(*wanted), wanted, grad.double())
    ours = torch.autograd.grad(depthwise_conv2d(x, weight), (x, weight), grad, create_graph=True)
    for a, b in zip(ours, expected):
        assert a.dtype == dtype and relative_error(a, b) < TOLERANCE[dtype]


@pytest.mark.parametrize('backend', [*ON_CPU, None])
def test_another_default_device_leaves_no_trace(backend):
    for cached in (dft._waves, dft._analysis, dft._synthesis, remembered._directions):
        cached.cache_clear()
    remembered.forget()
    x, weight, bias = tensors((2, 3, 12, 10, 7, 9))
    for device in ('meta', 'cpu'):
        with torch.device(device):
            for _ in range(2):  # the second inference takes the marks of the weight
                with torch.no_grad():
                    out = depthwise_conv2d(x, weight, bias, backend=backend)
                assert relative_error(out, depthwise_conv2d_reference(x, weight, bias)) < TOLERANCE[torch.float32]
            out = depthwise_conv2d(x, weight, bias, backend=backend)
            assert all(g.device.type == 'cpu' for g in torch.autograd.grad(out, (x, weight, bias), x.detach()))


def test_frozen_weights_and_inference_mode():
    conv, x = DepthwiseConv2d(3, 9).requires_grad_(False), torch.randn(1, 3, 10, 10, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None and conv.weight.grad is None
    with torch.inference_mode():
        assert relative_error(conv(x), depthwise_conv2d_reference(x, conv.weight, conv.bias)) < TOLERANCE[torch.float32]


def test_replace_depthwise_in_timms_convnext():
    timm = pytest.importorskip('timm')
    model = timm.create_model('convnext_atto', num_classes=7).eval()
    x = torch.randn(1, 3, 96, 64)
    expected, state = model(x), {k: v.clone() for k, v in model.state_dict().items()}
    parameters = list(model.parameters())
    assert replace_depthwise(model) is model
    assert sum(isinstance(m, DepthwiseConv2d) for m in model.modules()) == 12  # 2 + 2 + 6 + 2 blocks, 7x7
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert relative_error(model(x), expected) < 1e-5
    assert replace_depthwise(model) is model


def test_replace_depthwise_leaves_everything_else():
    def conv(*args, **kwargs):
        return nn.Conv2d(4, 4, *args, groups=4, **kwargs)

    others = [conv(7, padding=2), conv(7, padding=3, stride=2), conv(7, padding=6, dilation=2), conv(5, padding=2),
              conv(8, padding=4), conv(7, padding=3, padding_mode='circular'), nn.Conv2d(4, 4, 7, padding=3, groups=2),
              nn.Conv2d(4, 8, 7, padding=3, groups=4)]
    with pytest.raises(ValueError, match='ModuleList has no depthwise nn.Conv2d .* a kernel of at least 7'):
        replace_depthwise(nn.ModuleList(others))
    taken = [conv((5, 51), padding=(2, 25)), conv(7, padding='same'), conv(8, padding='same')]
    x = torch.randn(1, 4, 12, 12)
    expected = [module(x) for module in taken]
    model = replace_depthwise(nn.ModuleList([*others, *taken]))
    assert [type(module) is DepthwiseConv2d for module in model] == [False] * len(others) + [True] * len(taken)
    for module, before in zip(taken, expected):
        assert relative_error(module(x), before) < TOLERANCE[torch.float32]
