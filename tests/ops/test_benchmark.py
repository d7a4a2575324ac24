import subprocess
import sys

import pytest
import torch

from mmlk.ops import list_backends
from mmlk.ops import benchmark
from mmlk.ops.benchmark import Case, OperatorRow, contention, measure, peak_memory, table, turns

CPU = torch.device('cpu')


def test_operations_of_a_case():
    case = Case(2, 3, 5, 7, 9, backward=False)
    assert case.flops == 2 * 2 * 3 * 5 * 7 * 81 and case._replace(backward=True).flops == 3 * case.flops


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='memory of a process is read from /proc')
def test_peak_memory_sees_what_a_call_holds_for_a_while():
    def call():
        torch.ones(4 << 20)  # 16 MiB, gone at once
        return torch.ones(2 << 20)

    peak = peak_memory(call, CPU)
    assert 15 << 20 <= peak < 40 << 20


def test_turns_run_every_call_and_give_seconds():
    counts = {'a': 0, 'b': 0}

    def call(name):
        counts[name] += 1

    samples = turns({name: lambda name=name: call(name) for name in counts}, CPU, most=4)
    assert set(samples) == {'a', 'b'} and all(len(values) == 4 and min(values) >= 0 for values in samples.values())
    assert counts == {'a': 1 + 2 * 4, 'b': 1 + 2 * 4}  # a first call, then an uncounted and a counted one a turn


@pytest.mark.parametrize('options, slow_turns', [(dict(most=3, least=3, budget=0.), 3), (dict(most=3, least=1), 1)])
def test_order_and_number_of_turns(monkeypatch, options, slow_turns):
    """A fast call runs once untimed before each timing; ``budget`` takes turns from the slow one only."""
    events, durations = [], {'fast': 0.1, 'slow': 2.}

    def call(name):
        def run(timed=False):
            events.append(name.upper() if timed else name)
            return name
        return run

    monkeypatch.setattr(benchmark, 'timed', lambda call, device: durations[call(timed=True)])
    samples = turns({name: call(name) for name in durations}, CPU, tick=lambda: events.append('|'), **options)
    assert samples == {'fast': [0.1] * 3, 'slow': [2.] * slow_turns}
    rounds = ['fast FAST | SLOW |'] * slow_turns + ['fast FAST |'] * (3 - slow_turns)
    assert ' '.join(events) == ' '.join(['FAST SLOW', *rounds])


@pytest.mark.parametrize('backward', [False, True])
def test_a_row_has_every_backend_and_says_why_not(backward):
    row = measure(Case(1, 4, 12, 12, 7, backward), CPU, budget=0.01)
    able = {b.name for b in list_backends()} - set(row.reasons)
    assert set(row.times) == able | {'stock', 'chosen'} == set(row.memory)
    assert len(row.chosen) == (3 if backward else 1) and set(row.chosen) <= able


def test_a_busy_process_runs_beside_every_second_round_and_is_ended(monkeypatch):
    started, seen = [], []
    popen = subprocess.Popen
    monkeypatch.setattr(benchmark.subprocess, 'Popen', lambda *args: started.append(popen(*args)) or started[-1])

    def turns(calls, device, budget, most, least):
        busy = sum(process.poll() is None for process in started)
        seen.append(busy)
        return {name: [1. + busy] * 3 for name in calls}

    monkeypatch.setattr(benchmark, 'turns', turns)
    monkeypatch.setattr(benchmark, 'SETTLING_SECONDS', 0.)
    found = contention(Case(1, 4, 12, 12, 7, False), CPU, rounds=2)
    assert found == {'stock': (1., 2.), 'chosen': (1., 2.)}
    assert seen == [0, 1, 0, 1] and all(process.poll() is not None for process in started)


def test_table():
    case = Case(1, 128, 128, 128, 31, False)
    samples = {'stock': [0.6], 'native': [0.61], 'fft': [0.01, 0.012, 0.02], 'chosen': [0.0125, 0.0126, 0.0124]}
    row = OperatorRow(case, samples, {'stock': 10 << 20, 'chosen': 20 << 20}, {'triton': 'no GPU'}, ['fft'])
    text = table([row], {torch.float32: 2e11})
    head, _, line = ([cell.strip() for cell in line.split('|')[1:-1]] for line in text.split('\n'))
    assert dict(zip(head[:9], line)) == {
        'work': '(1,128,128,128) k 31, forward', 'type': 'float32', 'stock': '600 (10)', 'native': '610', 'fft': '12',
        'chosen': '12.5 (20)', 'of': 'fft', 'against stock': '48.0x', 'chosen / best': '1.05'}
    assert line[9:] == ['322', '161 %', '2.0x']
    floors = table([row], {torch.float32: 2e12}, bandwidth=1e10).split('|')[-3:-1]
    # 2 maps of 8 MiB at 10 GB/s are 1.68 ms; 4.03 GFLOP x 46 / 31 at 2 TFLOP/s are 2.99 ms; of 12.5 ms
    assert [cell.strip() for cell in floors] == ['13 %', '24 %']


def test_the_tool_refuses_a_device_that_is_not_here(repo):
    done = subprocess.run([sys.executable, 'tools/benchmark_ops.py', '--device', 'mps'], cwd=repo,
                          capture_output=True, text=True)
    assert done.returncode == 2 and 'there is no such device here' in done.stderr
