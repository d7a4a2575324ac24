"""The operator's numbers: every backend against the float64 reference, and the properties of a convolution."""
from functools import lru_cache

import pytest
import torch

from mmlk.ops import depthwise_conv2d
from mmlk.ops.reference import depthwise_conv2d_reference
from tests.ops.cases import ON_CPU, SHAPES, TOLERANCE, tensors
from tests.utils import relative_error


@pytest.fixture
def poisoned():
    """Uninitialised memory is filled with NaN: an output that is not written everywhere shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def exact(shape, dtype, grad):
    """The reference's output and gradients on the same rounded numbers."""
    torch.manual_seed(0)
    leaves = [t.detach().double().requires_grad_() for t in tensors(shape, dtype)]
    out = depthwise_conv2d_reference(*leaves)
    out.backward(grad.double())
    return [out, *(t.grad for t in leaves)]


@pytest.mark.parametrize('dtype', TOLERANCE, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('backend', [*ON_CPU, None])
def test_equals_reference_with_all_gradients(backend, shape, dtype, poisoned):
    grad = torch.randn(shape[:4]).to(dtype)
    expected = exact(shape, dtype, grad)
    torch.manual_seed(0)
    leaves = tensors(shape, dtype)
    out = depthwise_conv2d(*leaves, backend=backend)
    out.backward(grad)
    for name, ours, theirs in zip(('output', 'input', 'weight', 'bias'), [out, *(t.grad for t in leaves)], expected):
        assert ours.dtype == dtype, name
        assert relative_error(ours, theirs) < TOLERANCE[dtype], name


@lru_cache
def on_a_real_map(height, width):
    """Input, weight, bias and output's gradient whose numbers every dtype holds, and the reference's output and
    gradients of them. The biases are as large as those of a merged network."""

    def numbers(*shape):
        return (torch.randn(shape, dtype=torch.float64).clamp(-3.9, 3.9) * 64).round() / 64

    torch.manual_seed(0)
    leaves = [numbers(1, 2, height, width), numbers(2, 1, 31, 13), torch.tensor([100, -7.5], dtype=torch.float64)]
    grad = numbers(1, 2, height, width)
    wanted = [t.clone().requires_grad_() for t in leaves]
    out = depthwise_conv2d_reference(*wanted)
    return leaves, grad, [out.detach(), *torch.autograd.grad(out, wanted, grad)]


@pytest.mark.parametrize('dtype', TOLERANCE, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize('size', [(128, 128), (200, 304)], ids=str)
@pytest.mark.parametrize('backend', [*ON_CPU, None])
def test_real_map_sizes_and_biases(backend, size, dtype):
    if backend == 'dft' and size[1] > 160:
        pytest.skip('its transforms run up to a length of 160')
    leaves, grad, expected = on_a_real_map(*size)
    leaves = [t.to(dtype).requires_grad_() for t in leaves]
    out = depthwise_conv2d(*leaves, backend=backend)
    results = [out, *torch.autograd.grad(out, leaves, grad.to(dtype))]
    with torch.no_grad():
        results.append(depthwise_conv2d(*leaves, backend=backend))
    names = ('output', 'input', 'weight', 'bias', 'inference')
    for name, ours, theirs in zip(names, results, [*expected, expected[0]]):
        assert relative_error(ours, theirs) < TOLERANCE[dtype], name


@pytest.mark.parametrize('backend', ON_CPU)
@pytest.mark.parametrize('wanted', [(True, False, False), (False, True, False), (False, False, True)])
def test_a_single_gradient_equals_that_of_all_three(backend, wanted):
    leaves = tensors((2, 3, 12, 9, 9, 11), torch.float64)
    grad = torch.randn(2, 3, 12, 9, dtype=torch.float64)
    every = torch.autograd.grad(depthwise_conv2d(*leaves, backend=backend), leaves, grad)
    some = [t.detach().requires_grad_(need) for t, need in zip(leaves, wanted)]
    depthwise_conv2d(*some, backend=backend).backward(grad)
    for leaf, need, expected in zip(some, wanted, every):
        assert (leaf.grad is not None) == need
        assert not need or relative_error(leaf.grad, expected) < 1e-13


@pytest.mark.parametrize('backend', ON_CPU)
def test_backward_twice_leaves_what_was_kept_alone(backend):
    leaves = tensors((2, 3, 12, 9, 9, 11))
    out = depthwise_conv2d(*leaves, backend=backend)
    grad = torch.randn_like(out)
    first = torch.autograd.grad(out, leaves, grad, retain_graph=True)
    for once, again in zip(first, torch.autograd.grad(out, leaves, grad)):
        assert torch.equal(once, again)


@pytest.mark.parametrize('backend', ON_CPU)
def test_chunks_of_channels_do_not_show(backend):
    leaves = tensors((1, 45, 96, 120, 31, 31))  # several chunks, the last one smaller
    grad = torch.randn(1, 45, 96, 120)
    out = depthwise_conv2d(*leaves, backend=backend)
    grads = torch.autograd.grad(out, leaves, grad)
    for c in (0, 22, 44):
        one = [leaves[0][:, c:c + 1], leaves[1][c:c + 1], leaves[2][c:c + 1]]
        one = [t.detach().double().requires_grad_() for t in one]
        expected = depthwise_conv2d_reference(*one)
        for ours, theirs in zip((out[:, c:c + 1], grads[0][:, c:c + 1], grads[1][c:c + 1]),
                                (expected, *torch.autograd.grad(expected, one[:2], grad[:, c:c + 1].double()))):
            assert relative_error(ours, theirs) < TOLERANCE[torch.float32]


@pytest.mark.parametrize('backend', ON_CPU)
@pytest.mark.parametrize('shape', [(2, 2, 6, 5, 5, 7), (1, 2, 5, 4, 4, 12)], ids=str)
def test_gradcheck_twice(backend, shape):
    leaves = tensors(shape, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: depthwise_conv2d(*t, backend=backend), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: depthwise_conv2d(*t, backend=backend), leaves)


def layouts():
    """One input (2, 8, 9, 13) in several memory layouts."""
    x = torch.randn(2, 8, 9, 13)
    wide = torch.zeros(2, 16, 9, 26)
    wide[:, ::2, :, 1::2] = x
    return {'contiguous': x, 'channels_last': x.contiguous(memory_format=torch.channels_last),
            'transposed': x.transpose(-1, -2).contiguous().transpose(-1, -2), 'strided': wide[:, ::2, :, 1::2],
            'expanded': x[:, :, :1].expand(-1, -1, 9, -1)}


@pytest.mark.parametrize('layout', layouts())
@pytest.mark.parametrize('backend', [*ON_CPU, None])
def test_any_layout_in_and_the_memory_format_kept(backend, layout):
    x = layouts()[layout].requires_grad_()
    weight = torch.randn(8, 1, 11, 6)
    out = depthwise_conv2d(x, weight, backend=backend)
    assert relative_error(out, depthwise_conv2d_reference(x, weight)) < TOLERANCE[torch.float32]
    last = layout == 'channels_last'
    assert out.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    grad, = torch.autograd.grad(out, x, torch.ones_like(out).transpose(-1, -2).contiguous().transpose(-1, -2))
    expected = x.detach().double().requires_grad_()
    depthwise_conv2d_reference(expected, weight).sum().backward()
    assert relative_error(grad, expected.grad) < TOLERANCE[torch.float32]
    assert grad.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize('backend', ON_CPU)
def test_linearity_delta_translation_and_adjoint(backend):
    x, y = torch.randn(2, 1, 3, 20, 24, dtype=torch.float64)
    v, w = torch.randn(2, 3, 1, 31, 13, dtype=torch.float64)

    def run(x, w):
        return depthwise_conv2d(x, w, backend=backend)

    assert relative_error(run(2 * x - y, w), 2 * run(x, w) - run(y, w)) < 1e-13
    assert relative_error(run(x, v + 3 * w), run(x, v) + 3 * run(x, w)) < 1e-13
    delta = torch.zeros(3, 1, 31, 13, dtype=torch.float64)
    delta[:, :, 15, 6] = 1
    assert relative_error(run(x, delta), x) < 1e-13
    moved = run(x, delta.roll((2, -3), (-2, -1)))
    assert relative_error(moved[:, :, :-2, 3:], x[:, :, 2:, :-3]) < 1e-13
    assert moved[:, :, -2:].abs().max() < 1e-13 and moved[..., :3].abs().max() < 1e-13
    x.requires_grad_()
    adjoint, = torch.autograd.grad(run(x, w), x, y)  # <Ax, y> = <x, A'y>
    assert abs((run(x, w) * y).sum() - (x * adjoint).sum()) < 1e-10


@pytest.mark.parametrize('backend', [*ON_CPU, None])
def test_empty_batch(backend):
    x, weight = torch.randn(0, 3, 8, 8, requires_grad=True), torch.randn(3, 1, 7, 7, requires_grad=True)
    out = depthwise_conv2d(x, weight, backend=backend)
    assert out.shape == x.shape
    out.sum().backward()
    assert x.grad.shape == x.shape and not weight.grad.any()
