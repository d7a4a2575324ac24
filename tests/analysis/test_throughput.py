"""Which batches are tried, which is the best, and what is said of it; never how long anything takes."""
import json
import math

import pytest
import torch
from torch import nn

from mmlk._text import parse_bytes
from mmlk.analysis import throughput
from mmlk.analysis.latency import LatencyNetwork, Variant
from mmlk.analysis.throughput import Trial, measure_throughput, search, why_failed
from mmlk.cli import main
from mmlk.ops import benchmark

CPU, GIB = torch.device('cpu'), 2**30


def attempts(throughputs, memory=lambda batch: batch * GIB):
    """Attempts whose images per second are given by batch; others run out of memory."""
    def attempt(batch):
        if batch not in throughputs:
            return Trial(batch, failed='out of memory')
        return Trial(batch, batch / throughputs[batch], memory(batch))
    return attempt


@pytest.mark.parametrize('throughputs, tried, ended', [
    # a dip of one batch does not end the search, two in a row do
    ({1: 10, 2: 9, 4: 12, 8: 11, 16: 12, 32: 99}, [1, 2, 4, 8, 16], 'batches of 8 and 16 are not faster'),
    ({1: 10, 2: 20}, [1, 2, 4], 'a batch of 4: out of memory'),
    ({}, [1], 'a batch of 1: out of memory'),
])
def test_batches_double_until_they_are_not_faster_or_fail(throughputs, tried, ended):
    trials, reason = search(attempts(throughputs), 100 * GIB, predict=False)
    assert ([trial.batch for trial in trials], reason) == (tried, ended)
    best = {trial.throughput for trial in trials if not trial.failed}
    assert best == {value for batch, value in throughputs.items() if batch in tried}


@pytest.mark.parametrize('predict, tried, ended', [
    (False, [1, 2, 4], 'a batch of 4: needs 6 GiB of 5 GiB'),
    (True, [1, 2], 'a batch of 4 would need about 6 GiB of 5 GiB')])
def test_the_bound_on_memory_holds(predict, tried, ended):
    """A batch of n needs 2 + n GiB."""
    trials, reason = search(attempts({1: 1, 2: 2, 4: 4}, lambda n: (2 + n) * GIB), 5 * GIB, predict)
    assert ([trial.batch for trial in trials], reason) == (tried, ended)
    assert [bool(trial.failed) for trial in trials] == [batch == 4 for batch in tried]


@pytest.mark.parametrize('error, told', [
    (torch.OutOfMemoryError('CUDA out of memory. Tried'), 'out of memory'), (MemoryError(), 'out of memory'),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 'out of memory'),
    (ValueError('no such type\nmore'), 'ValueError: no such type')])
def test_errors_are_told_in_a_line(error, told):
    assert why_failed(error) == told


@pytest.mark.parametrize('text, size', [('8GiB', 8 * GIB), ('500 MB', 500_000_000), ('1.5KiB', 1536), ('1000', 1000)])
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize('text', ['', '8G', '-8GiB', 'much', '0GiB', '8gib'])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match='such as 8GiB or 500MB, got'):
        parse_bytes(text)


class Counting(nn.Module):
    """Takes a second plus a tenth of one for each image, on a clock of its own; more than eight are too many."""

    def __init__(self):
        super().__init__()
        self.weight, self.seconds = nn.Parameter(torch.zeros(256)), 0.0

    def forward(self, images):
        if len(images) > 8:
            raise torch.OutOfMemoryError('CUDA out of memory.')
        self.seconds = 1 + len(images) / 10
        return [images * self.weight[0]]


@pytest.fixture
def clock(monkeypatch):
    """A clock that the networks set, and a memory of 1000 bytes a call."""
    modules = []

    def timed(call, device):
        for module in modules:
            module.seconds = 0
        call()
        return sum(module.seconds for module in modules)

    monkeypatch.setattr(benchmark, 'timed', timed)
    monkeypatch.setattr(benchmark, 'peak_memory', lambda call, device: (call(), 1000)[1])
    return modules


def test_each_network_is_measured_at_its_best_batch(clock):
    clock += [Counting(), Counting()]
    clock[1].forward = lambda images: (_ for _ in ()).throw(ValueError('never'))
    networks = [LatencyNetwork('good', None), LatencyNetwork('bad', None)]
    good, bad = measure_throughput(networks, clock, [Variant()], 'inference', (4, 6), CPU, GIB, turns=2, warmup=1)
    assert [trial.batch for trial in good.trials] == [1, 2, 4, 8, 16] and good.trials[-1].failed == 'out of memory'
    assert (good.best.batch, good.seconds, good.dtype) == (8, [1.8] * 2, 'float32')
    assert good.throughput == pytest.approx(8 / 1.8)
    assert good.best.memory == 4 * 256 + 4 * 8 * 3 * 4 * 6 + 1000  # weights, images, and the call
    assert good.ended == 'a batch of 16: out of memory'
    assert bad.best is None and bad.ended == 'a batch of 1: ValueError: never'
    assert good.to_dict()['shape'] == dict(width=6, height=4) and math.isclose(
        good.to_dict()['images_per_second'], 8 / 1.8)
    assert bad.to_dict()['failed'] == bad.ended and json.dumps([good.to_dict(), bad.to_dict()], allow_nan=False)


def test_without_a_known_memory_no_bound_is_claimed(clock, monkeypatch):
    monkeypatch.setattr(benchmark, 'peak_memory', lambda call, device: None)
    row, = measure_throughput([LatencyNetwork('a', None)], [Counting()], [Variant()], 'inference', (4, 4), CPU, GIB)
    assert row.best is None and 'does not tell how much memory' in row.ended


def test_the_types_of_the_variants():
    assert [throughput.dtype_of(Variant.parse(text), CPU) for text in ('fp32', 'amp', 'optimized+bf16')] == [
        'float32', 'bfloat16', 'bfloat16']
    gpu = torch.device('cuda')
    assert [throughput.dtype_of(Variant.parse(text), gpu) for text in ('fp32', 'amp', 'optimized+bf16')] == [
        'float32 (TF32)' if torch.backends.cudnn.allow_tf32 else 'float32', 'float16', 'bfloat16']


def tool(*arguments):
    """The exit code of the command."""
    try:
        main(['benchmark', 'timm:test_convnext', *arguments])
    except SystemExit as end:
        return end.code
    return 0


def test_the_tool_states_batch_memory_type_and_resolution(tmp_path, monkeypatch, capsys):
    needed = iter([GIB, 1.2 * GIB] * 2)  # a batch of 4 would need 1.6 GiB
    monkeypatch.setattr(benchmark, 'timed', lambda call, device: (call(), 1.)[1])
    monkeypatch.setattr(benchmark, 'peak_memory', lambda call, device: next(needed))
    assert tool('--throughput', '--memory-limit', '1.5GiB', '--shape', '64x32', '--modes', 'inference', '--turns', '1',
                '--warmup', '1', '--device', 'cpu', '--out', str(tmp_path), '--variants', 'fp32', 'amp') == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'backbone, best batch within 1.5 GiB, random weights, 1 turns' in lines
    report = json.loads((tmp_path / 'throughput.json').read_text())
    assert report['memory_limit_bytes'] == 1.5 * GIB
    for row, variant, dtype in zip(report['rows'], ('fp32', 'amp'), ('float32', 'bfloat16')):
        assert (row['variant'], row['dtype'], row['shape']) == (variant, dtype, dict(width=64, height=32))
        assert (row['batch'], row['images_per_second']) == (2, 2) and 1.2 * GIB < row['memory_bytes'] < 1.21 * GIB
        told, = (line.split() for line in lines if line.strip().startswith(f'test_convnext ({variant}) '))
        assert told == ['test_convnext', f'({variant})', 'inference', '64x32', dtype, '2', '1.2', 'GiB', '2']
        assert row['ended'].startswith('a batch of 4 would need about 1.6')


@pytest.mark.parametrize('arguments, problem', [
    (['--throughput', '--batch', '2'], '--batch cannot be given'),
    (['--memory-limit', '8GiB'], '--memory-limit is of --throughput'),
    (['--throughput', '--memory-limit', 'much'], "such as 8GiB or 500MB, got 'much'"),
    (['--throughput', '--variants', 'openvino', '--device', 'cpu'], 'keeps memory that cannot be measured')])
def test_the_tool_refuses_before_anything_is_measured(arguments, problem, capsys):
    assert tool(*arguments) == 2
    assert problem in capsys.readouterr().err
