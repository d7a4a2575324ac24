"""The Triton kernels: in Triton's interpreter anywhere, on a GPU where there is one, and compiled for GPUs without one.

A kernel is interpreted if ``TRITON_INTERPRET`` was set when it was decorated, so all interpreted cases run in one child
process, which is this file run as a program.
"""
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmlk.ops.backends import ConvProblem
from mmlk.ops.backends import triton as triton_backend
from mmlk.ops.backends.native import Native
from mmlk.ops.backends.triton import Triton, _precision
from mmlk.ops.reference import depthwise_conv2d_reference
from tests.ops.cases import SHAPES, TOLERANCE, tensors
from tests.utils import relative_error

# The interpreter rounds to bfloat16 by cutting off.
TOLERANCES = {'float32': TOLERANCE[torch.float32], 'float16': TOLERANCE[torch.float16], 'bfloat16': 8e-3}
LAYOUTS = ('channels_last', 'permuted', 'expanded', 'far')
UNEVEN = [  # tiles and shares that fill no program, even kernels, more taps than one program has
    (3, 1, 20, 72, 9, 11), (1, 2, 31, 16, 15, 4), (2, 1, 16, 24, 14, 14), (1, 1, 34, 36, 67, 66)]
STRIPS = [  # strips of 16 and 32 columns, several blocks of columns of taps, images of many pieces and pieces of many
    (2, 1, 6, 72, 5, 11), (1, 2, 9, 104, 9, 31), (1, 1, 5, 80, 9, 67), (21, 1, 5, 9, 9, 9), (1, 1, 3, 70, 5, 8),
    (1, 1, 150, 9, 9, 6), (1, 1, 8, 60, 9, 119)]
CASES = [  # shape, layout, dtype, rows of a tile
    *((shape, 'contiguous', dtype, 4) for shape in SHAPES for dtype in TOLERANCES),
    *((shape, 'contiguous', 'float32', 4) for shape in UNEVEN),
    *((shape, 'contiguous', 'float16', 4) for shape in STRIPS),
    *((shape, 'contiguous', 'float32', 8) for shape in (SHAPES[0], SHAPES[3], UNEVEN[0])),
    *(((2, 3, 10, 16, 9, 13), layout, 'float16', 4) for layout in LAYOUTS),
    ((2, 3, 10, 15, 9, 13), 'channels_last', 'float32', 4),
    ((2, 3, 10, 15, 9, 13), 'channels_last', 'bfloat16', 4),
    ((1, 2, 20, 9, 51, 5), 'channels_last', 'float16', 4),
    ((1, 2, 9, 20, 5, 51), 'channels_last', 'float32', 4),
]
needs_triton = pytest.mark.skipif(triton_backend._triton_version() < (3, 4), reason='there is no triton 3.4 or later')


def lay(x, layout):
    """The same numbers in other strides."""
    n, c, h, w = x.shape
    if layout == 'channels_last':
        return x.contiguous(memory_format=torch.channels_last)
    if layout == 'permuted':
        return x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    if layout == 'expanded':
        return x[:1].expand(n, c, h, w)
    if layout == 'far':  # images further apart than 32-bit numbers reach; nothing between them is ever touched
        step = 2**31 + 64
        far = torch.empty(0, dtype=x.dtype, device=x.device).set_(
            torch.UntypedStorage(x.element_size() * (step + c * h * w), device=x.device)).as_strided(
                x.shape, (step, h * w, w, 1))
        return far.copy_(x)
    return x


def errors(case, device):
    """Relative errors to the reference on the same rounded numbers, per pass and configuration."""
    from mmlk.ops.backends import triton_kernels
    torch.manual_seed(0)
    shape, layout, name, rows = case
    dtype = getattr(torch, name)
    x, weight, bias = (t.detach().to(device) for t in tensors(shape, dtype))
    bias = bias if layout == 'contiguous' else None
    x, grad = lay(x, layout), lay(torch.randn(shape[:4]).to(device, dtype), layout)
    problem = ConvProblem.of(x, weight)
    backend = Triton()
    assert backend.can_run(problem) == (True, '')
    exact = [t.double().requires_grad_() for t in (x, weight)]
    out = depthwise_conv2d_reference(*exact)
    out.backward(grad.double())
    expected = {'forward': out if bias is None else out + bias.double().reshape(-1, 1, 1), 'grad_input': exact[0].grad,
                'grad_weight': exact[1].grad}
    every = triton_kernels.CONFIGS
    found = {}
    try:
        for config in every:
            if config.kwargs['ROWS'] != rows or device == 'cpu' and config.num_stages > 1:  # which is not interpreted
                continue
            triton_kernels.CONFIGS = [config]
            results = {'forward': backend.forward(x, weight, bias, problem),
                       'grad_input': backend.grad_input(grad, weight, problem),
                       'grad_weight': backend.grad_weight(grad, x, problem)}
            for step, result in results.items():
                assert result.dtype == dtype
                assert step == 'grad_weight' or result.is_contiguous(memory_format=problem.memory_format)
                found[f'{step}, {config}'] = relative_error(result, expected[step])
            if layout != 'contiguous' or max(shape) < 16:
                kept = []
                together = [backend.forward(x, weight, bias, problem, kept),
                            *backend.gradients(grad, x, weight, problem, kept)]
                assert all(torch.equal(*pair) for pair in zip(results.values(), together))
    finally:
        triton_kernels.CONFIGS = every
    return found


def properties(device):
    """What holds of the backend whatever the rounding: names, and whether it does."""
    backend, found = Triton(), {}
    x, weight, bias = (t.detach().to(device) for t in tensors((2, 3, 10, 16, 9, 13), torch.float16))
    problem = ConvProblem.of(x, weight)
    expected = backend.forward(x, weight, bias, problem)
    for name, same in (('every second', bias.repeat_interleave(2)[::2]),
                       ('column', torch.stack([bias, bias + 1], 1)[:, 0])):
        found[f'bias, {name}'] = torch.equal(backend.forward(x, weight, same, problem), expected)
    one = bias[:1].expand(3)
    found['bias, expanded'] = torch.equal(backend.forward(x, weight, one, problem),
                                          backend.forward(x, weight, one.contiguous(), problem))
    wide = torch.zeros(3, 1, 18, 26, dtype=weight.dtype, device=device)
    wide[:, :, ::2, ::2] = weight
    found['weight of any strides'] = torch.equal(backend.forward(x, wide[:, :, ::2, ::2], bias, problem), expected)
    odd = torch.zeros(x.numel() + 1, dtype=x.dtype, device=device)[1:].view_as(x).copy_(x)  # two bytes off
    found['unaligned input'] = torch.equal(backend.forward(odd, weight, bias, problem), expected)
    lay_anew, copies = triton_backend._rows, []

    def counted(t):
        rows = lay_anew(t)
        copies.append(rows is not t)
        return rows

    triton_backend._rows = counted
    try:
        for dtype, layout, size in itertools.product(
                (torch.float16, torch.float32), ('contiguous', 'channels_last'), (16, 15)):
            x = lay(torch.randn(2, 3, 10, size).to(device, dtype), layout)
            most = int(layout == 'channels_last' or size == 15)
            problem, kept, each = ConvProblem.of(x, weight), [], []
            backend.forward(x, weight.to(dtype), None, problem, kept)
            each.append(sum(copies))
            copies.clear()
            backend.gradients(torch.randn_like(x), x, weight.to(dtype), problem, kept)
            each.append(sum(copies))
            copies.clear()
            found[f'{layout}, {dtype}, width {size}: x and the gradient are laid anew once'] = each == [most, most]
    finally:
        triton_backend._rows = lay_anew
    return found


def main():
    """Print the errors of every case in the interpreter, with uninitialised memory full of NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan()
    print(json.dumps([{str(case): errors(case, 'cpu') for case in CASES}, properties('cpu')]))


@pytest.fixture(scope='module')
def interpreted():
    root = Path(__file__).resolve().parents[2]
    child = subprocess.run([sys.executable, '-m', 'tests.ops.test_triton'], cwd=root, capture_output=True, text=True,
                           env={**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'})
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.parametrize('case', CASES, ids=str)
def test_interpreted_kernels_equal_the_reference(interpreted, case):
    for which, error in interpreted[0][str(case)].items():
        assert error < TOLERANCES[case[2]], which


@needs_triton
def test_interpreted_strides_do_not_show_and_nothing_is_laid_anew_twice(interpreted):
    assert interpreted[1] and [name for name, holds in interpreted[1].items() if not holds] == []


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('case', CASES, ids=str)
def test_compiled_kernels_equal_the_reference(case):
    if case[1] == 'far' and torch.cuda.mem_get_info()[0] < 10 << 30:
        pytest.skip('it takes 10 GiB of memory')
    for which, error in errors(case, 'cuda').items():
        assert error < TOLERANCES[case[2]], which


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_strides_do_not_show_on_a_gpu():
    assert [name for name, holds in properties('cuda').items() if not holds] == []


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_a_cuda_graph_replays_the_operator():
    from mmlk.ops import depthwise_conv2d
    x, weight, bias = (t.detach().to('cuda') for t in tensors((2, 8, 40, 40, 31, 31), torch.float16))
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        with torch.cuda.stream(torch.cuda.Stream()):  # compiles every configuration
            depthwise_conv2d(x, weight, bias, backend='triton')
        torch.cuda.synchronize()
        triton_backend._best.clear()  # a capture that meets a size which was never timed
        with torch.cuda.graph(graph):
            out = depthwise_conv2d(x, weight, bias, backend='triton')
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert relative_error(out, depthwise_conv2d_reference(x, weight, bias)) < TOLERANCES['float16']


@needs_triton
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='fewer than two CUDA devices')
def test_tensors_of_another_device_than_the_current_one():
    from mmlk.ops import depthwise_conv2d
    leaves = [t.detach().to('cuda:1').requires_grad_() for t in tensors((2, 3, 12, 17, 9, 9), torch.float16)]
    with torch.cuda.device(0):
        out = depthwise_conv2d(*leaves, backend='triton')
        out.sum().backward()
    assert out.device == leaves[0].device
    assert relative_error(out, depthwise_conv2d_reference(*leaves)) < TOLERANCES['float16']


@needs_triton
@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_channels_last_maps_go_through_one_kernel_each_way(dtype, monkeypatch):
    """The launches of a training step, caught before they need a GPU."""
    from mmlk.ops.backends import triton_kernels
    launched = []

    class Caught:

        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **kwargs: launched.append(self.name)

    for name in ('correlate', 'weigh', 'weigh_halves', 'relay'):
        monkeypatch.setattr(triton_kernels, name, Caught(name))
    x, weight = (t.detach() for t in tensors((2, 8, 24, 24, 9, 9), getattr(torch, dtype))[:2])
    backend, x, kept = Triton(), lay(x, 'channels_last'), []
    backend.forward(x, weight, None, ConvProblem.of(x, weight), kept)
    assert launched == ['relay', 'correlate', 'relay']
    backend.gradients(x, x, weight, ConvProblem.of(x, weight), kept)
    assert launched[3:] == ['relay', 'correlate', 'relay', 'weigh_halves' if dtype == 'float16' else 'weigh']


class TestConfigurations:
    """Which configuration is launched, with figures instead of a clock."""

    @pytest.fixture(autouse=True)
    def figures(self, monkeypatch):
        self.launched, self.timed = [], []

        def seconds(launch):
            launch()
            self.timed.append(self.launched[-1])
            return {'a': 3., 'b': 1., 'c': float('inf')}[self.launched[-1]]

        monkeypatch.setattr(triton_backend, '_seconds', seconds)
        monkeypatch.setattr(triton_backend, '_best', {})
        monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)

    def best(self, configs='abc', key='key', device=0):
        return triton_backend._best_config(torch.device('cuda', device), (key, ), configs, self.launched.append)

    def test_each_is_timed_once_per_key_and_device(self):
        assert [self.best(), self.best()] == ['b', 'b'] and self.timed == ['a', 'b', 'c']
        assert self.best(key='other') == 'b' and len(self.timed) == 6
        assert self.best(device=1) == 'b' and len(self.timed) == 9

    def test_a_single_one_is_not_timed(self):
        assert self.best('a') == 'a' and not self.timed

    def test_nothing_is_timed_while_a_graph_is_captured(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
        assert self.best() == 'a' and not self.timed
        monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
        assert self.best() == 'b'  # what was captured settled nothing
        monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
        assert self.best() == 'b'

    def test_nothing_is_timed_where_results_must_not_depend_on_it(self):
        self.best()
        torch.use_deterministic_algorithms(True)  # off again before the next test
        assert self.best() == 'a' and len(self.timed) == 3


def problem(**changes):
    base = ConvProblem(torch.device('cuda'), torch.float16, 2, 128, 128, 128, 31, 31)
    return base._replace(**changes)


def test_it_says_where_it_cannot_run(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    monkeypatch.setattr(triton_backend, '_triton_version', lambda: (3, 4))
    monkeypatch.setattr(torch.version, 'cuda', '12.8')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 0))
    assert Triton().can_run(problem()) == (True, '')
    cpu = problem(device=torch.device('cpu'))
    assert Triton().can_run(cpu) == (False, 'it runs on cuda, not cpu')
    assert Triton().can_run(problem(dtype=torch.float64)) == (
        False, 'it runs in float16, bfloat16 and float32, not torch.float64')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    assert Triton().can_run(problem()) == (False, 'its products need compute capability 8.0, this GPU has 7.5')
    monkeypatch.setattr(torch.version, 'cuda', None)
    assert Triton().can_run(problem()) == (False, 'it is written for NVIDIA GPUs')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert Triton().can_run(cpu) == (True, '')
    for version, last in (((), 'triton is not installed'), ((3, 3), 'this is 3.3')):
        monkeypatch.setattr(triton_backend, '_triton_version', lambda: version)
        for case in (cpu, problem()):
            assert Triton().can_run(case) == (False, f'it needs triton 3.4, which comes with torch 2.8; {last}')


def test_importing_the_operator_does_not_import_the_kernels():
    code = "import sys, mmlk.ops.backends.triton; assert 'mmlk.ops.backends.triton_kernels' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).resolve().parents[2])


def test_tf32_only_when_the_person_allows_it():
    assert torch.get_float32_matmul_precision() == 'highest' and _precision(torch.float32) == 'ieee'
    torch.set_float32_matmul_precision('high')
    try:
        assert _precision(torch.float32) == 'tf32'
    finally:
        torch.set_float32_matmul_precision('highest')


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_no_float32_map_reaches_cudnn_unless_tf32_is_allowed(layout, monkeypatch):
    """cuDNN is given what is channels_last; the tensors lie on the CPU, the problem says that they do not."""
    from mmlk.ops.backends import list_backends, native
    from mmlk.ops.backends.channels_last import ChannelsLast
    seen = []
    monkeypatch.setattr(native.F, 'conv2d', lambda x, w, *_, **__: seen.extend((x, w)) or x[..., :16, :16])
    monkeypatch.setattr(native.torch.ops.aten, 'convolution_backward',
                        lambda g, x, w, *_: seen.extend((g, x, w)) or (x, w, None))

    def formats(dtype):
        seen.clear()
        x = lay(torch.randn(2, 32, 16, 16).to(dtype), layout)
        weight = torch.randn(32, 1, 9, 9).to(dtype).contiguous(memory_format=torch.channels_last)
        given = ConvProblem.of(x, weight)._replace(device=torch.device('cuda'))
        for backend in list_backends():
            if backend.name in ('native', 'padded', 'channels_last') and backend.can_run(given)[0]:
                backend.forward(x, weight, None, given)
                backend.grad_input(x, weight, given)
                backend.grad_weight(x, x, given)
        assert seen
        return [t.is_contiguous() for t in seen if t.shape[1] > 1]

    assert not ChannelsLast().can_run(problem(dtype=torch.float32))[0]
    assert all(formats(torch.float32))
    assert not all(formats(torch.float16))  # channels_last itself, at least
    torch.set_float32_matmul_precision('high')
    try:
        assert not all(formats(torch.float32))
        assert ChannelsLast().can_run(problem(dtype=torch.float32))[0]
    finally:
        torch.set_float32_matmul_precision('highest')


@pytest.mark.parametrize('step', ['forward', 'grad_input', 'grad_weight', 'gradients'])
def test_estimates(step):
    ours, native = Triton(), Native()
    for dtype in TOLERANCES:
        large = problem(dtype=getattr(torch, dtype))
        assert ours.cost(step, large) < native.cost(step, large)
        assert native.cost(step, large._replace(kh=7, kw=7)) < ours.cost(step, large._replace(kh=7, kw=7))
        assert ours.cost(step, large) < ours.cost(step, large._replace(batch=8))
    assert ours.cost(step, problem(kh=51, kw=5)) < ours.cost(step, problem(kh=51, kw=51))


@pytest.mark.parametrize('step', ['forward', 'grad_input', 'grad_weight'])
@pytest.mark.parametrize('shape', [(64, 384, 32, 32, 31, 31), (8, 128, 128, 128, 31, 31), (16, 128, 56, 56, 31, 31)])
def test_estimates_stay_near_the_floors_of_a_gpu(shape, step):
    """An A100's published rates: 312, 156 and 19.5 TFLOP/s, and 1.56 TB/s for maps read and written once."""
    for dtype, high, rate in ((torch.float16, False, 312e12), (torch.bfloat16, False, 312e12),
                              (torch.float32, True, 156e12), (torch.float32, False, 19.5e12)):
        torch.set_float32_matmul_precision('high' if high else 'highest')
        try:
            given = ConvProblem(torch.device('cuda'), dtype, *shape)
            floor = max(2 * given.macs / rate * (1 if rate < 1e14 else (31 + 15) / 31),
                        2 * given.macs / 31**2 * dtype.itemsize / 1.56e12)
            assert 1 < Triton().cost(step, given) / floor < 4
        finally:
            torch.set_float32_matmul_precision('highest')


if __name__ == '__main__':
    main()
