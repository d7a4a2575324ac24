"""Chunks on threads of their own: the results and the state of a plain loop, wherever the call comes from."""
import itertools
import multiprocessing
import subprocess
import sys
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from mmlk.ops import depthwise_conv2d
from mmlk.ops.backends import ConvProblem, get, workers
from mmlk.ops.backends.base import channel_chunks
from mmlk.ops.reference import depthwise_conv2d_reference
from tests.utils import relative_error

CPU = torch.device('cpu')
SPECTRAL = ('dft', 'fft', 'fft_pairs')


@pytest.fixture(autouse=True)
def two_threads_on_a_busy_machine(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    switches, seconds = itertools.count(0, 10), itertools.count(0, 1e-6)
    monkeypatch.setattr(workers, 'involuntary_switches', lambda: next(switches))
    monkeypatch.setattr(workers, '_now', lambda: next(seconds))
    monkeypatch.setattr(workers, '_machine', workers._Machine())
    workers._machine.busy = True
    yield
    torch.set_num_threads(before)


def threads_of(device=CPU):
    """The threads that ``each`` calls from."""
    return {*workers.each(device, lambda i: threading.get_ident(), range(8))}


def in_a_new_thread(function):
    result = []
    thread = threading.Thread(target=lambda: result.append(function()))
    thread.start()
    thread.join()
    return result[0]


@pytest.mark.parametrize('layout', ['contiguous_format', 'channels_last'])
@pytest.mark.parametrize('backend', SPECTRAL)
def test_the_number_of_threads_does_not_show(backend, layout):
    x = torch.randn(2, 101, 96, 90).contiguous(memory_format=getattr(torch, layout)).requires_grad_()
    weight, bias = torch.randn(101, 1, 31, 13, requires_grad=True), torch.randn(101, requires_grad=True)
    problem = ConvProblem.of(x, weight)
    assert len(get(backend, problem).plan(problem).chunks) > 1
    grad = torch.randn_like(x)

    def results(threads):
        torch.set_num_threads(threads)
        out = depthwise_conv2d(x, weight, bias, backend=backend)
        found = [out, *torch.autograd.grad(out, (x, weight, bias), grad)]
        found += torch.autograd.grad(depthwise_conv2d(x, weight, bias, backend=backend), x, grad)
        with torch.no_grad():
            found += [depthwise_conv2d(x, weight, bias, backend=backend) for _ in range(3)]
        with torch.inference_mode():
            found.append(depthwise_conv2d(x, weight, bias, backend=backend))
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            found.append(depthwise_conv2d(x, weight, bias, backend=backend))
        assert found[-2].is_inference() and found[-1].dtype == torch.bfloat16
        return found

    alone = results(1)
    exact = depthwise_conv2d_reference(x[:, -1:], weight[-1:], bias[-1:])
    assert relative_error(alone[0][:, -1:], exact) < 2e-6
    for threads in (2, 3):
        for one, other in zip(alone, results(threads)):
            assert relative_error(other, one.double()) < 1e-6 if one.shape == bias.shape else torch.equal(one, other)
            assert one.stride() == other.stride()


def test_chunks_are_as_large_as_asked_for_and_go_round():
    problem = ConvProblem(CPU, torch.float32, 2, 128, 8, 8, 3, 3)
    for most, sizes in ((128, [128]), (64, [64, 64]), (127, [64, 64]), (50, [32] * 4), (12, [11] * 11 + [7]),
                        (1, [1] * 128)):
        chunks = channel_chunks(problem, area=100, elements=2 * 100 * most)
        assert [chunk.stop - chunk.start for chunk in chunks] == sizes
        assert [chunk.start for chunk in chunks] == [0, *(chunk.stop for chunk in chunks[:-1])]
    assert channel_chunks(problem, area=100, elements=1) == channel_chunks(problem, area=100, elements=200)


def test_calls_run_side_by_side_each_on_one_thread_and_recording_nothing():
    together = threading.Barrier(2, timeout=30)

    def call(i):
        together.wait()
        return i, torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    assert workers.each(CPU, call, [0, 1]) == [(i, 1, False, False) for i in range(2)]
    with torch.inference_mode():
        assert workers.each(CPU, call, [0, 1]) == [(i, 1, False, True) for i in range(2)]
    assert threading.get_ident() not in threads_of()


def test_everybody_else_keeps_the_number_of_threads():
    workers._pools.clear()
    try:
        assert in_a_new_thread(torch.get_num_threads) == 2
        before = torch.__config__.parallel_info()
        assert threading.get_ident() not in threads_of()
        assert torch.__config__.parallel_info() == before == in_a_new_thread(torch.__config__.parallel_info)
        torch.set_num_threads(3)
        in_a_new_thread(lambda: torch.set_num_threads(4))
        assert threading.get_ident() not in threads_of()
        assert (torch.get_num_threads(), in_a_new_thread(torch.get_num_threads)) == (3, 4)
    finally:
        torch.set_num_threads(2)


@pytest.mark.parametrize('threads', [1, workers._MAX_THREADS + 1])
def test_on_one_thread_and_on_many_the_caller_does_it(threads):
    torch.set_num_threads(threads)
    assert threads_of() == {threading.get_ident()}


def test_only_while_cores_are_often_taken_away(monkeypatch):
    """Decided anew after each window of calls, whose seconds are those of a false clock."""
    taken, passed = [0], [0.0]
    monkeypatch.setattr(workers, 'involuntary_switches', lambda: taken[0])
    monkeypatch.setattr(workers, '_now', lambda: passed[0])
    workers._machine.busy = False

    def dealt(switches, seconds):
        def call(i):
            if i == 0:
                taken[0] += switches
                passed[0] += seconds
            return threading.get_ident()
        return threading.get_ident() not in workers.each(CPU, call, range(4))

    window = workers._WINDOW
    few, many = (round(workers.BUSY_RATE * window * factor) for factor in (0.5, 2))
    assert not dealt(few, window) and not dealt(many, window / 2)  # the second is half a window
    assert not dealt(0, 2 * window)  # in two and a half windows they are too few
    for _ in range(2):  # busy for a while, then it is counted again
        assert not dealt(many, window)
        assert [dealt(0, workers._BUSY_SECONDS / 4) for _ in range(4)] == [True] * 4
    assert not dealt(0, window) and not dealt(0, window)


def test_for_a_gpu_the_caller_does_it():
    assert threads_of(torch.device('cuda')) == {threading.get_ident()}


def test_where_threads_cannot_be_set_apart_the_caller_does_it(monkeypatch):
    monkeypatch.setattr(workers, '_pools', {})
    monkeypatch.setattr(torch.__config__, 'parallel_info', lambda: 'mkl_get_max_threads() : 2\n')
    assert threads_of() == {threading.get_ident()} and torch.get_num_threads() == 2


def test_a_chunk_does_not_deal_out_chunks():
    inner = workers.each(CPU, lambda i: (threading.get_ident(), threads_of()), range(4))
    assert all(threads == {ident} for ident, threads in inner)


def test_a_dispatch_mode_sees_every_operator():
    x, weight, seen = torch.randn(2, 30, 96, 96), torch.randn(30, 1, 31, 31), []

    class Counter(TorchDispatchMode):

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((func, threading.get_ident()))
            return func(*args, **kwargs or {})

    with Counter():
        depthwise_conv2d(x, weight, backend='fft')
    assert {ident for _, ident in seen} == {threading.get_ident()}
    assert torch.ops.aten._fft_c2r.default in {func for func, _ in seen}


def test_an_error_is_the_callers_once_nothing_runs_any_more():
    running = []

    def call(i):
        running.append(i)
        try:
            if i == 1:
                raise ZeroDivisionError('chunk 1')
            torch.randn(1 << 18).sort()
        finally:
            running.remove(i)

    with pytest.raises(ZeroDivisionError, match='chunk 1'):
        workers.each(CPU, call, range(8))
    assert not running
    assert workers.each(CPU, lambda i: i, [0, 1, 2]) == [0, 1, 2]


def test_several_callers_at_a_time():
    x, weight = torch.randn(4, 1, 9, 96, 96), torch.randn(4, 9, 1, 31, 31)
    outs = [None] * 4

    def call(i):
        for _ in range(3):
            outs[i] = depthwise_conv2d(x[i], weight[i], backend='fft')

    callers = [threading.Thread(target=call, args=(i, )) for i in range(4)]
    [caller.start() for caller in callers]
    [caller.join() for caller in callers]
    for i in range(4):
        assert relative_error(outs[i], depthwise_conv2d_reference(x[i], weight[i])) < 2e-6


def _child(backend, x, weight, problem, connection):
    torch.set_num_threads(2)
    # what OpenMP itself spreads over threads hangs in a fork
    connection.send((backend.forward(x, weight, None, problem).numpy(), threading.get_ident() in threads_of()))


@pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='there is no fork')
def test_a_fork_starts_threads_of_its_own():
    x, weight = torch.randn(1, 30, 96, 96), torch.randn(30, 1, 31, 31)
    problem = ConvProblem.of(x, weight)
    backend = get('fft', problem)
    expected = backend.forward(x, weight, None, problem)
    assert threading.get_ident() not in threads_of()
    context = multiprocessing.get_context('fork')
    ours, theirs = context.Pipe()
    child = context.Process(target=_child, args=(backend, x, weight, problem, theirs))
    child.start()
    try:
        assert ours.poll(30), 'the child hangs'
        out, alone = ours.recv()
        assert torch.equal(torch.from_numpy(out), expected) and not alone
    finally:
        child.kill()


class _Images(torch.utils.data.Dataset):

    def __init__(self, x, weight):
        self.x, self.weight = x, weight

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return depthwise_conv2d(self.x[i:i + 1], self.weight, backend='fft')


def test_the_workers_of_a_data_loader():
    x, weight = torch.randn(4, 9, 48, 48), torch.randn(9, 1, 31, 31)
    outs = torch.cat(list(DataLoader(_Images(x, weight), batch_size=None, num_workers=2, timeout=60)))
    assert relative_error(outs, depthwise_conv2d_reference(x, weight)) < 2e-6


def test_at_the_interpreters_exit():
    code = """
import atexit, torch
from mmlk.ops import depthwise_conv2d
from mmlk.ops.backends import workers
workers._machine.busy = True
torch.set_num_threads(2)
x, weight = torch.randn(1, 9, 96, 96), torch.randn(9, 1, 31, 31)
out = depthwise_conv2d(x, weight, backend='fft')
atexit.register(lambda: print('equal', torch.equal(out, depthwise_conv2d(x, weight, backend='fft'))))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, 'equal True\n'), done.stderr
