"""Weighted sums over neighbourhoods: every backend against loops, at borders and on maps as small as the window.

The Triton kernels run in Triton's interpreter, in a child process that is this file run as a program, and on a GPU
where there is one.
"""
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmlk.ops import neighborhood, neighborhood_av
from mmlk.ops.backends import neighborhood as backends
from mmlk.ops.backends.triton import _triton_version
from mmlk.ops.layout import keep_operators
from mmlk.ops.reference import neighborhood_av_reference
from tests.ops.cases import TOLERANCE
from tests.utils import relative_error

BACKENDS = ['banded', 'gather']
CASES = [  # B, g, H, W, C, k
    (2, 3, 9, 11, 5, 5),
    (1, 2, 7, 7, 4, 7),  # the map is the window
    (1, 1, 7, 30, 3, 7),
    (2, 1, 20, 13, 16, 13),
    (1, 2, 5, 6, 1, 5),  # of two positions, none has a whole window on both sides
    (1, 1, 12, 70, 6, 17 - 8),  # several strips
    (1, 1, 21, 131, 2, 17),
    (1, 1, 4, 3, 2, 1),
]
LAYOUTS = ('contiguous', 'taps first', 'channels first', 'expanded')


def case(shape, dtype=torch.float32, device='cpu', layout='contiguous'):
    """Weights, values and a gradient of the output."""
    b, g, h, w, c, k = shape
    torch.manual_seed(0)
    attn, value, grad = torch.randn(b, g, h, w, k * k), torch.randn(b, g, h, w, c), torch.randn(b, g, h, w, c)
    if layout == 'taps first':
        attn = attn.movedim(-1, 1).contiguous().movedim(1, -1)
    elif layout == 'channels first':
        value, grad = (t.movedim(-1, 2).contiguous().movedim(2, -1) for t in (value, grad))
    elif layout == 'expanded':
        value, grad = value[:, :, :1].expand_as(value), grad[..., :1].expand_as(grad)
    return [t.to(device, dtype) for t in (attn, value, grad)]


def loops(attn, value, k):
    """The definition, one number after the other."""
    out = torch.zeros(value.shape, dtype=torch.float64)
    batch, heads, height, width, _ = value.shape
    for b, g, i, j in itertools.product(*map(range, (batch, heads, height, width))):
        top, left = i - k // 2, j - k // 2
        while top < 0:
            top += 1
        while left < 0:
            left += 1
        while top + k > height:
            top -= 1
        while left + k > width:
            left -= 1
        for p, q in itertools.product(range(k), range(k)):
            out[b, g, i, j] += attn[b, g, i, j, p * k + q].double() * value[b, g, top + p, left + q].double()
    return out


def results(shape, dtype, backend, device='cpu', layout='contiguous'):
    """Output and gradients, and those of the reference on the same rounded numbers."""
    attn, value, grad = case(shape, dtype, device, layout)
    exact = [t.double().requires_grad_() for t in (attn, value)]
    expected = neighborhood_av_reference(*exact, shape[-1])
    expected.backward(grad.double())
    leaves = [t.detach().requires_grad_() for t in (attn, value)]
    out = neighborhood_av(*leaves, shape[-1], backend=backend)
    out.backward(grad)
    return [out, *(t.grad for t in leaves)], [expected, *(t.grad for t in exact)]


@pytest.mark.parametrize('shape', CASES[:5] + CASES[-1:], ids=str)
def test_the_reference_is_the_definition(shape):
    attn, value, _ = case(shape)
    assert relative_error(neighborhood_av_reference(attn, value, shape[-1]), loops(attn, value, shape[-1])) < 1e-14


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('shape', CASES, ids=str)
def test_output_and_gradients_equal_the_reference(shape, backend):
    for dtype in (torch.float64, torch.float32):
        for ours, theirs in zip(*results(shape, dtype, backend)):
            assert ours.dtype == dtype and ours.is_contiguous()
            assert relative_error(ours, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_at_the_end_only(backend, dtype):
    for ours, theirs in zip(*results(CASES[3], dtype, backend)):
        assert ours.dtype == dtype and relative_error(ours, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('layout', LAYOUTS[1:])
def test_strides_do_not_show(backend, layout):
    for ours, theirs in zip(*results(CASES[0], torch.float64, backend, layout=layout)):
        assert relative_error(ours, theirs) < 1e-13


@pytest.mark.parametrize('chunk', [1, 2000])
def test_chunks_of_few_rows(chunk, monkeypatch):
    """Rows at the top and the bottom share a window; a chunk may hold one of them or part of those between."""
    monkeypatch.setattr(backends, '_CHUNK', chunk)
    for shape in (CASES[3], CASES[5]):
        for ours, theirs in zip(*results(shape, torch.float64, 'banded')):
            assert relative_error(ours, theirs) < 1e-13


def test_strips_cover_the_map():
    for width, k in itertools.product((7, 40, 48, 49, 64, 131, 333), (1, 3, 7)):
        strips = backends._strips(width, k)
        assert [s.first for s in strips] == [0, *(s.last for s in strips[:-1])] and strips[-1].last == width
        assert all(s.last - s.first <= 48 and s.span < s.last - s.first + k for s in strips)


@pytest.mark.parametrize('backend', [None, *BACKENDS])
def test_first_and_second_derivatives(backend):
    attn, value, _ = case((1, 1, 4, 3, 2, 3), torch.float64)
    leaves = attn.requires_grad_(), value.requires_grad_()

    def run(a, v):
        return neighborhood_av(a, v, 3, backend=backend)

    assert torch.autograd.gradcheck(run, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, leaves)
    for only in range(2):
        some = [t.detach().requires_grad_(i == only) for i, t in enumerate(leaves)]
        grads = torch.autograd.grad(run(*some).square().sum(), some[only])
        both = torch.autograd.grad(run(*leaves).square().sum(), leaves)
        torch.testing.assert_close(grads[0], both[only])


class Largest(torch.overrides.TorchFunctionMode):
    """The number of elements in the largest memory of a tensor that is made, but for the sizes in ``but``."""

    def __init__(self, *but):
        super().__init__()
        self.but, self.found = set(but), 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            size = out.untyped_storage().nbytes() // out.element_size()
            self.found = max(self.found, 0 if size in self.but else size)
        return out


@pytest.mark.parametrize('step', ['forward', 'grad_attn', 'grad_value'])
def test_memory_does_not_grow_with_the_map(step):
    """But for inputs, the result and one head's values: chunks of at most 2**18 elements."""
    k, channels = 13, 4
    for height, width in ((40, 100), (80, 200)):
        attn, value, grad = case((1, 1, height, width, channels, k))
        inputs = dict(forward=(attn, value), grad_attn=(grad, value), grad_value=(grad, attn))[step]
        with torch.no_grad(), Largest(attn.numel(), value.numel()) as most:
            getattr(backends.Banded(), step)(*inputs, k)
        assert 0 < most.found <= 2**18
    assert attn.numel() > 10 * 2**18
    # one row alone takes more than that with a very large window
    rows = [backends._Bands(strip, 51, value).rows for strip in backends._strips(200, 51)]
    assert min(rows) >= 1


def test_the_window_is_inside_the_map_or_refused():
    attn, value, _ = case((1, 1, 7, 6, 2, 7))
    with pytest.raises(ValueError, match='a map of 7x6 is smaller than the window of 7x7'):
        neighborhood_av(attn, value, 7)
    with pytest.raises(ValueError, match=r'takes attn \(B, g, H, W, 9\) and value .* got \(1, 1, 7, 6, 49\)'):
        neighborhood_av(attn, value, 3)
    for size in (4, 0, -3, 2.0, True):
        with pytest.raises(ValueError, match='kernel_size must be an odd positive integer'):
            neighborhood_av(attn, value, size)
    attn, value, _ = case(CASES[0])
    with pytest.raises(ValueError, match='no backend .*; there are banded, gather, triton'):
        neighborhood_av(attn, value, 5, backend='natten')
    with pytest.raises(ValueError, match="backend 'triton' cannot run here: it runs on cuda, not cpu"):
        neighborhood_av(attn, value, 5, backend='triton')
    with pytest.raises(ValueError, match='float64, not torch.int64'):
        neighborhood_av(attn, value.long(), 5)


@pytest.mark.parametrize('shape', [(0, 2, 5, 6, 3, 3), (2, 1, 5, 5, 0, 5)], ids=str)
def test_nothing_in_nothing_out(shape):
    attn, value, _ = (t.requires_grad_() for t in case(shape))
    out = neighborhood_av(attn, value, shape[-1])
    assert out.shape == value.shape
    out.sum().backward()
    assert attn.grad.shape == attn.shape and not attn.grad.any() and value.grad.shape == value.shape


def test_weights_take_the_dtype_of_values():
    """Under autocast a softmax gives float32, and the values before it half precision."""
    attn, value, _ = case(CASES[0])
    out = neighborhood_av(attn, value.bfloat16(), 5)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, neighborhood_av(attn.bfloat16(), value.bfloat16(), 5))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(neighborhood_av(attn, value, 5), neighborhood_av(attn, value, 5, backend='banded'))
        assert relative_error(neighborhood_av(attn, value, 5), neighborhood_av_reference(attn, value, 5)) < 1e-6


def test_uniform_weights_are_a_mean_over_the_clamped_window():
    _, value, _ = case((1, 1, 6, 9, 3, 5))
    out = neighborhood_av(torch.full((1, 1, 6, 9, 25), 1 / 25), value, 5)
    inner = torch.nn.functional.avg_pool2d(value[0].permute(0, 3, 1, 2), 5, 1)
    around = torch.nn.functional.pad(inner, (2, 2, 2, 2), mode='replicate').permute(0, 2, 3, 1)[None]
    torch.testing.assert_close(out, around)


class Net(torch.nn.Module):
    def forward(self, attn, value):
        return neighborhood_av(attn, value, 5)


def sides(names):
    height, width = (torch.export.Dim(name, min=5, max=64) for name in names)
    return {2: height, 3: width}


def test_exported_graphs_are_of_standard_operators_and_take_other_sizes():
    attn, value, _ = case(CASES[0])
    shapes = sides('hw')
    program = torch.export.export(Net(), (attn, value), dynamic_shapes=(shapes, shapes)).module()
    traced = torch.jit.trace(Net(), (attn, value), check_trace=False)
    assert {node.target.namespace for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)
            } == {'aten'}
    for shape in (CASES[0], (2, 3, 5, 8, 5, 5), (2, 3, 12, 6, 5, 5)):
        attn, value, _ = case(shape)
        for graph in (program, traced):
            assert relative_error(graph(attn, value), neighborhood_av_reference(attn, value, 5)) < 1e-6


def test_graphs_that_run_in_python_keep_the_operator():
    attn, value, _ = case(CASES[0])
    shapes = sides('hw')
    with keep_operators():
        program = torch.export.export(Net(), (attn, value), dynamic_shapes=(shapes, shapes), strict=False).module()
    assert [node.target for node in program.graph.nodes if node.op == 'call_function'
            and 'mmlk' in str(node.target)] == [torch.ops.mmlk.neighborhood_av.default]
    attn, value, _ = case((2, 3, 12, 6, 5, 5))
    assert relative_error(program(attn, value), neighborhood_av_reference(attn, value, 5)) < 1e-6


def test_onnx(tmp_path):
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    attn, value, _ = case(CASES[0])
    shapes = sides('hw')
    torch.onnx.export(Net(), (attn, value), str(tmp_path / 'net.onnx'), dynamo=True, dynamic_shapes=(shapes, shapes),
                      input_names=['attn', 'value'], verbose=False)
    session = runtime.InferenceSession(str(tmp_path / 'net.onnx'))
    for shape in (CASES[0], (2, 3, 12, 6, 5, 5)):
        attn, value, _ = case(shape)
        [out] = session.run(None, dict(attn=attn.numpy(), value=value.numpy()))
        assert relative_error(torch.from_numpy(out), neighborhood_av_reference(attn, value, 5)) < 1e-6


def test_custom_operators_are_well_formed():
    attn, value, grad = case((1, 2, 5, 6, 3, 3))
    leaves = attn.requires_grad_(), value.requires_grad_()
    torch.library.opcheck(torch.ops.mmlk.neighborhood_av.default, (*leaves, 3, None))
    torch.library.opcheck(torch.ops.mmlk.neighborhood_av_backward.default, (grad, *leaves, 3, None, True, True))


def test_compiled_code_has_one_operator_for_each_pass():
    graphs = []

    def note(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    from torch._dynamo.backends.common import aot_autograd
    attn, value, grad = case(CASES[0])
    leaves = attn.requires_grad_(), value.requires_grad_()
    compiled = torch.compile(Net(), backend=aot_autograd(fw_compiler=note, bw_compiler=note), fullgraph=True)
    compiled(*leaves).backward(grad)
    assert [sum('mmlk' in target for target in graph) for graph in graphs] == [1, 1]
    found = [t.grad.clone() for t in leaves]
    for t in leaves:
        t.grad = None
    neighborhood_av(*leaves, 5).backward(grad)
    assert all(torch.equal(a, t.grad) for a, t in zip(found, leaves))


def test_transforms_and_meta_tensors():
    attn, value, _ = case(CASES[0])
    out = torch.vmap(lambda a, v: neighborhood_av(a[None], v[None], 5)[0])(attn, value)
    torch.testing.assert_close(out, neighborhood_av(attn, value, 5))
    _, tangent = torch.func.jvp(lambda v: neighborhood_av(attn, v, 5), (value, ), (value, ))
    torch.testing.assert_close(tangent, neighborhood_av(attn, value, 5))
    assert neighborhood_av(attn.to('meta'), value.to('meta'), 5).shape == value.shape


def test_a_gpu_without_working_kernels_falls_back_once_with_a_warning(monkeypatch):
    attn, value, _ = case(CASES[0])
    calls = []
    monkeypatch.setattr(neighborhood, '_failed', set())
    monkeypatch.setattr(neighborhood, '_prove', lambda device, dtype: None)
    monkeypatch.setattr(backends.TritonNeighborhood, 'can_run', lambda self, value: (True, ''))
    monkeypatch.setattr(backends.TritonNeighborhood, 'forward', lambda self, *args: calls.append(1) or 1 / 0)
    said = OnDevice(value, torch.device('cuda'))
    with pytest.warns(RuntimeWarning, match='does not use Triton on cuda again in this process.*ZeroDivisionError'):
        out = neighborhood._run(lambda method: method.forward(attn, value, 5), None, said)
    again = neighborhood._run(lambda method: method.forward(attn, value, 5), None, said)
    assert len(calls) == 1 and torch.equal(out, again)
    assert torch.equal(out, neighborhood_av(attn, value, 5, backend='gather'))


class OnDevice:
    """Values that say that they are on another device."""

    def __init__(self, value, device):
        self.value, self.device, self.dtype = value, device, value.dtype


INTERPRETED = [(shape, dtype, layout) for shape, dtype, layout in (
    ((1, 2, 6, 7, 5, 5), 'float32', 'contiguous'), ((1, 1, 3, 3, 4, 3), 'float32', 'contiguous'),
    ((1, 1, 4, 3, 2, 1), 'float32', 'contiguous'), ((1, 1, 3, 30, 20, 3), 'float32', 'contiguous'),  # three tiles
    ((1, 1, 3, 4, 70, 3), 'float32', 'contiguous'),  # two blocks of channels
    ((2, 1, 5, 4, 3, 3), 'float64', 'taps first'), ((2, 1, 5, 4, 3, 3), 'float16', 'channels first'),
    ((2, 1, 5, 4, 3, 3), 'bfloat16', 'contiguous'))]
needs_triton = pytest.mark.skipif(_triton_version() < (3, 4), reason='there is no triton 3.4 or later')


def errors(shape, dtype, layout, device):
    ours, theirs = results(shape, getattr(torch, dtype), 'triton', device, layout)
    return [relative_error(a, b) for a, b in zip(ours, theirs)]


def main():
    """Prints the errors of every case in the interpreter."""
    print(json.dumps([errors(*which, 'cpu') for which in INTERPRETED]))


@needs_triton
def test_interpreted_kernels_equal_the_reference():
    root = Path(__file__).resolve().parents[2]
    child = subprocess.run([sys.executable, '-m', 'tests.ops.test_neighborhood'], cwd=root, capture_output=True,
                           text=True, env={**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'})
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout.splitlines()[-1])
    for (shape, dtype, layout), values in zip(INTERPRETED, found):
        # the interpreter rounds to bfloat16 by cutting off
        bound = 8e-3 if dtype == 'bfloat16' else TOLERANCE[getattr(torch, dtype)]
        assert len(values) == 3 and max(values) < bound, (shape, dtype, layout, values)


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('which', INTERPRETED, ids=str)
def test_compiled_kernels_equal_the_reference(which):
    assert max(errors(*which, 'cuda')) < TOLERANCE[getattr(torch, which[1])]


if __name__ == '__main__':
    main()
