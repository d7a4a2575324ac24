import copy
import pickle

import pytest
import torch
from torch import nn

from mmlk.ops import DepthwiseConv2d, backends, depthwise_conv2d
from mmlk.ops.backends import Problem, choose, get
from mmlk.ops.backends.fft import smooth_length
from mmlk.ops.reference import depthwise_conv2d_reference
from tests.utils import relative_error

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13}
SHAPES = [  # N, C, H, W, kh, kw
    (2, 3, 12, 17, 7, 7), (1, 4, 40, 24, 31, 31), (2, 2, 9, 14, 13, 13), (1, 3, 8, 8, 31, 31), (1, 2, 1, 1, 7, 7),
    (2, 3, 11, 10, 4, 6), (1, 2, 20, 9, 51, 5), (1, 2, 9, 20, 5, 51), (3, 1, 16, 16, 1, 1), (1, 2, 1, 30, 3, 9),
    (0, 3, 8, 8, 7, 7),
]
NAMES = [b.name for b in backends()]


def problem_data(shape, dtype):
    n, c, h, w, kh, kw = shape
    return (torch.randn(n, c, h, w, dtype=dtype, requires_grad=True),
            torch.randn(c, 1, kh, kw, dtype=dtype, requires_grad=True),
            torch.randn(c, dtype=dtype, requires_grad=True))


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('backend', [*NAMES, None])
def test_equals_reference_with_all_gradients(backend, shape, dtype):
    tensors = problem_data(shape, dtype)
    grad = torch.randn(shape[:4], dtype=dtype)
    out = depthwise_conv2d(*tensors, backend=backend)
    out.backward(grad)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = depthwise_conv2d_reference(*exact)
    expected.backward(grad.double())
    assert out.dtype == dtype
    assert relative_error(out, expected) < TOLERANCE[dtype]
    for ours, theirs in zip(tensors, exact):
        assert relative_error(ours.grad, theirs.grad) < TOLERANCE[dtype]


@pytest.mark.parametrize('backend', NAMES)
def test_gradcheck(backend):
    x, w, b = problem_data((2, 2, 6, 5, 5, 7), torch.float64)
    assert torch.autograd.gradcheck(lambda *t: depthwise_conv2d(*t, backend=backend), (x, w, b))


@pytest.mark.parametrize('backend', NAMES)
def test_non_contiguous_and_channels_last_input(backend):
    x = torch.randn(2, 9, 13, 4).permute(0, 3, 1, 2)
    w = torch.randn(4, 1, 11, 11)
    assert relative_error(depthwise_conv2d(x, w, backend=backend), depthwise_conv2d_reference(x, w)) < 3e-6


@pytest.mark.parametrize('backend', NAMES)
def test_delta_kernel_is_identity_and_shift_moves(backend):
    x = torch.randn(1, 3, 20, 24)
    delta = torch.zeros(3, 1, 31, 31)
    delta[:, :, 15, 15] = 1
    torch.testing.assert_close(depthwise_conv2d(x, delta, backend=backend), x, atol=1e-6, rtol=1e-5)
    right = torch.zeros(3, 1, 31, 31)
    right[:, :, 15, 18] = 1
    moved = depthwise_conv2d(x, right, backend=backend)
    torch.testing.assert_close(moved[..., :-3], x[..., 3:], atol=1e-6, rtol=1e-5)
    assert moved[..., -3:].abs().max() < 1e-6


def test_module_is_a_conv2d_with_the_same_state_dict():
    ours = DepthwiseConv2d(4, 31)
    stock = nn.Conv2d(4, 4, 31, padding=15, groups=4)
    assert ours.padding == stock.padding and ours.groups == stock.groups and isinstance(ours, nn.Conv2d)
    stock.load_state_dict(ours.state_dict())
    x = torch.randn(1, 4, 18, 20)
    assert relative_error(ours(x), stock(x)) < 3e-6
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied(x), ours(x))


def test_meta_and_low_precision_and_autocast():
    conv = DepthwiseConv2d(4, 31)
    assert conv.to('meta')(torch.empty(1, 4, 9, 9, device='meta')).shape == (1, 4, 9, 9)
    conv = DepthwiseConv2d(4, 13)
    x = torch.randn(1, 4, 16, 16)
    expected = depthwise_conv2d_reference(x, conv.weight, conv.bias)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.bfloat16 and relative_error(out, expected) < 2e-2
    assert conv.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize('backend', NAMES)
def test_second_derivatives(backend):
    x, w, b = problem_data((1, 2, 4, 5, 5, 4), torch.float64)
    assert torch.autograd.gradgradcheck(lambda *t: depthwise_conv2d(*t, backend=backend), (x, w, b))


def test_a_backend_that_cannot_run_says_why():
    x, w = torch.randn(1, 2, 8, 8).half(), torch.randn(2, 1, 7, 7).half()
    with pytest.raises(ValueError, match="'fft' cannot run here: transforms run in float32"):
        depthwise_conv2d(x, w, backend='fft')
    with pytest.raises(ValueError, match="no depthwise backend 'cutlass'; there are native"):
        depthwise_conv2d(x, w, backend='cutlass')
    assert get('native', x.device, x.dtype).can_run(x.device, x.dtype) == (True, '')


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r'got \(1, 2, 8, 8\) and \(3, 1, 7, 7\)'):
        depthwise_conv2d(torch.randn(1, 2, 8, 8), torch.randn(3, 1, 7, 7))
    with pytest.raises(ValueError, match=r'bias must have shape \(2,\)'):
        depthwise_conv2d(torch.randn(1, 2, 8, 8), torch.randn(2, 1, 7, 7), torch.randn(3))


def test_large_kernels_leave_the_stock_path_and_small_ones_stay():
    cpu = torch.device('cpu')
    large = Problem(cpu, torch.float32, 1, 128, 128, 128, 31, 31)
    assert {choose(step, large).name for step in ('forward', 'grad_input', 'grad_weight')} == {'fft'}
    assert choose('forward', large._replace(kh=3, kw=3)).name == 'native'


def test_smooth_length():
    assert [smooth_length(n) for n in (1, 7, 11, 13, 143, 241)] == [1, 8, 12, 15, 144, 243]
