"""Which backend runs: reasons, estimates, measurement, determinism."""
import logging
from collections import OrderedDict

import pytest
import torch

from mmlk.ops import choice, depthwise_conv2d, list_backends
from mmlk.ops.backends import STEPS, Problem, get

CPU = torch.device('cpu')
LARGE = Problem(CPU, torch.float32, 1, 128, 128, 128, 31, 31)


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(choice, '_chosen', OrderedDict())
    monkeypatch.setattr(choice, '_met', OrderedDict())


def test_a_backend_that_cannot_run_says_why():
    x, w = torch.randn(1, 2, 300, 300), torch.randn(2, 1, 7, 7)
    with pytest.raises(ValueError, match="'dft' cannot run here: .* half the kernel is 303 long, it runs up to 160"):
        depthwise_conv2d(x, w, backend='dft')
    with pytest.raises(ValueError, match="no depthwise backend 'cutlass'; there are native, padded"):
        depthwise_conv2d(x, w, backend='cutlass')
    for name in ('padded', 'channels_last', 'dft', 'fft', 'fft_pairs', 'triton'):
        with pytest.raises(ValueError, match='cannot run here: it .*; the device is meta|runs on .*, not meta'):
            depthwise_conv2d(x.to('meta'), w.to('meta'), backend=name)
    with pytest.raises(ValueError, match='it runs in float16, bfloat16, float32 and float64, not torch.int32'):
        get('fft', LARGE._replace(dtype=torch.int32))
    assert get('native', LARGE).can_run(LARGE) == (True, '')


def test_automatic_choice_logs_the_same_reason(caplog, fresh):
    with caplog.at_level(logging.DEBUG, 'mmlk.ops.choice'):
        choice.candidates('forward', LARGE._replace(height=300))
    assert 'not dft: map plus half the kernel is 315 long' in caplog.text


def test_estimates_keep_large_kernels_off_the_stock_path_and_small_ones_on_it():
    for step in STEPS:
        order = [b.name for _, b in choice.candidates(step, LARGE)]
        assert order[0] in ('fft', 'fft_pairs', 'dft')
        assert order[-1] in ('native', 'channels_last') or step == 'training' and not {'native', 'padded'} & {*order}
    assert choice.candidates('forward', LARGE._replace(kh=3, kw=3))[0][1].name == 'native'


@pytest.mark.parametrize('step', STEPS)
def test_estimates_are_positive_and_grow_with_the_work(step):
    for backend in list_backends():
        if backend.can_run(LARGE)[0]:
            small = backend.cost(step, LARGE._replace(height=16, width=16))
            batch = backend.cost(step, LARGE._replace(batch=8))
            assert 0 < small < backend.cost(step, LARGE) < batch, backend.name


def test_measured_on_the_third_meeting_then_remembered(fresh):
    timed = []

    def pass_of(backend):
        timed.append(backend.name)

    first = [choice.choose('forward', LARGE, pass_of)[0].name for _ in range(2)]
    assert not timed and first[0] == first[1] == choice.candidates('forward', LARGE)[0][1].name
    chosen = choice.choose('forward', LARGE, pass_of)[0]
    assert len(set(timed)) > 1 and chosen.name in timed
    timed.clear()
    assert choice.choose('forward', LARGE, pass_of)[0] is chosen and not timed


def test_the_faster_backend_is_chosen(fresh, monkeypatch):
    durations = {'fft': 3.0, 'dft': 2.0}
    monkeypatch.setattr(choice, 'timed', lambda call, device: call())
    problem = LARGE._replace(height=32, width=32)

    def choose():
        return choice.choose('forward', problem, lambda backend: durations.get(backend.name, 4.0))

    for _ in range(2):
        choose()
    assert (choose()[0].name, choose()[1]) == ('dft', 2.0)


@pytest.mark.parametrize('together, expected', [(5.9, {'training': 'fft_pairs'}),
                                                (6.1, {'forward': 'channels_last', 'gradients': 'fft'})])
def test_spectra_are_kept_where_that_beats_the_best_of_each_pass(fresh, monkeypatch, together, expected):
    durations = {('forward', 'channels_last'): 1.0, ('gradients', 'fft'): 5.0, ('training', 'fft_pairs'): together}
    monkeypatch.setattr(choice, 'timed', lambda call, device: call())
    problem = LARGE._replace(batch=2, channels=512, height=16, width=16)
    for _ in range(3):
        methods = choice.choose_training(problem, lambda step, backend: durations.get((step, backend.name), 9.0))
    assert {step: backend.name for step, backend in methods.items()} == expected
    assert choice.choose_training(problem) == methods


def test_training_goes_without_spectra_where_they_cannot_run(fresh):
    problem = LARGE._replace(device=torch.device('xpu'))
    for _ in range(4):
        methods = choice.choose_training(problem, lambda step, backend: None)
    assert {backend.name for backend in methods.values()} == {'native'}


@pytest.mark.parametrize('backend', ['channels_last', 'fft_pairs'])
def test_the_backward_pass_takes_what_was_chosen_in_the_forward_pass(fresh, monkeypatch, backend):
    x, w = torch.randn(2, 4, 12, 12, requires_grad=True), torch.randn(4, 1, 7, 7, requires_grad=True)
    problem = Problem.of(x, w)
    chosen = {'training': get('fft_pairs', problem)} if backend == 'fft_pairs' else {
        'forward': get('channels_last', problem), 'grad_input': get('padded', problem),
        'grad_weight': get('fft', problem)}
    monkeypatch.setattr('mmlk.ops.depthwise.choose_training', lambda problem, run: chosen)
    monkeypatch.setattr('mmlk.ops.depthwise.choose_gradients', None)
    expected = torch.nn.functional.conv2d(x, w, padding=3, groups=4)
    grad = torch.randn_like(expected)
    out = depthwise_conv2d(x, w)
    for ours, reference in zip((out, *torch.autograd.grad(out, (x, w), grad)),
                               (expected, *torch.autograd.grad(expected, (x, w), grad))):
        assert (ours - reference).norm() < 1e-5 * reference.norm()


def test_a_race_takes_turns_and_drops_the_slow(monkeypatch):
    order = []

    def call(name, seconds):
        order.append(name)
        return seconds

    monkeypatch.setattr(choice, 'timed', lambda call, device: call())
    calls = [lambda: call('a', 0.02), lambda: call('b', 0.5), lambda: call('c', 0.03)]
    assert choice.race(calls, CPU) == [0.02, 0.5, 0.03]
    assert order == list('aabbcc') + list('aacc') * 3  # a turn of all, then of those still in it


def test_deterministic_algorithms_leave_it_at_the_estimates(fresh):
    x, w = torch.randn(1, 8, 20, 20), torch.randn(8, 1, 13, 13)
    problem = Problem.of(x, w)
    expected = choice.candidates('inference', problem)[0][1]
    torch.use_deterministic_algorithms(True)
    try:
        outs = [depthwise_conv2d(x, w) for _ in range(4)]
        assert choice._chosen['inference', problem, torch.get_num_threads(), True][0] is expected
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(outs[0], out) for out in outs)


@pytest.mark.parametrize('deterministic', [False, True])
def test_problems_of_ever_new_sizes_are_forgotten_and_those_in_use_are_not(fresh, monkeypatch, deterministic):
    monkeypatch.setattr(choice, '_ENTRIES', 20)
    monkeypatch.setattr(choice, 'candidates', lambda step, problem: [(1.0, get('native', problem))])
    monkeypatch.setattr(choice, 'race', lambda calls, device: [1.0])
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: deterministic)
    for side in range(1, 300):
        for problem in (LARGE, LARGE._replace(height=side)):
            choice.choose('forward', problem, lambda backend: None)
    assert choice._key('forward', LARGE) in choice._chosen
    assert len(choice._chosen) <= 20 and len(choice._met) <= 20
    assert len(choice._chosen if deterministic else choice._met) == 20
