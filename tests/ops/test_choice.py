"""Which backend runs: reasons, estimates, measurement, determinism."""
import logging
import threading
import warnings
from math import inf

import pytest
import torch

from mmlk.ops import DepthwiseConv2d, choice, depthwise_conv2d, list_backends, use_backend
from mmlk.ops.backends import STEPS, ConvProblem, get
from mmlk.ops.reference import depthwise_conv2d_reference
from tests.utils import relative_error

CPU = torch.device('cpu')
LARGE = ConvProblem(CPU, torch.float32, 1, 128, 128, 128, 31, 31)


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(choice, '_state', choice._State())


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
    problem = ConvProblem.of(x, w)
    chosen = {'training': get('fft_pairs', problem)} if backend == 'fft_pairs' else {
        'forward': get('channels_last', problem), 'grad_input': get('padded', problem),
        'grad_weight': get('fft', problem)}
    monkeypatch.setattr('mmlk.ops.depthwise.choose_training', lambda problem, run, weight: chosen)
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
    problem = ConvProblem.of(x, w)
    expected = choice.candidates('inference', problem)[0][1]
    torch.use_deterministic_algorithms(True)
    try:
        outs = [depthwise_conv2d(x, w) for _ in range(4)]
        assert choice.choose('inference', problem)[0] is expected
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(outs[0], out) for out in outs)


@pytest.mark.parametrize('deterministic', [False, True])
def test_problems_of_ever_new_sizes_are_forgotten_and_those_in_use_are_not(fresh, monkeypatch, deterministic):
    monkeypatch.setattr(choice, '_MAX_PROBLEMS', 20)
    monkeypatch.setattr(choice, 'candidates', lambda step, problem: [(1.0, get('native', problem))])
    monkeypatch.setattr(choice, 'race', lambda calls, device: [1.0])
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: deterministic)
    for side in range(1, 300):
        for problem in (LARGE, LARGE._replace(height=side)):
            choice.choose('forward', problem, lambda backend: None)
    assert (LARGE, torch.get_num_threads()) in choice._state.problems
    assert len(choice._state.problems) == 20
    assert choice._state.step('forward', LARGE).meetings == (0 if deterministic else 300)


def clocked(monkeypatch, durations):
    """A clock that only calls of backends and steps move, by the seconds given to them; the races that were held."""
    clock, races = [0.0], []

    def call(backend):
        clock[0] += durations.get(backend.name, 4.0)
        return clock[0]

    def timed(run, device):
        before = clock[0]
        run()
        return clock[0] - before

    race = choice.race
    monkeypatch.setattr(choice, '_now', lambda: clock[0])
    monkeypatch.setattr(choice, 'timed', timed)
    monkeypatch.setattr(choice, 'race', lambda calls, device: races.append(len(calls)) or race(calls, device))
    return clock, races, call


def test_equal_blocks_count_once_an_image(fresh, monkeypatch):
    _, races, call = clocked(monkeypatch, {})
    for _image in range(2):
        for block in range(9):
            choice.choose('forward', LARGE, call, weight=1000 + block)
    assert not races
    choice.choose('forward', LARGE, call, weight=1000)
    assert len(races) == 1


def test_a_weight_that_is_gone_does_not_keep_a_problem_from_being_measured(fresh, monkeypatch):
    _, races, call = clocked(monkeypatch, {})
    choice.choose('forward', LARGE, call, weight=1)
    for _ in range(choice._MAX_OTHER_CALLS + 4):
        choice.choose('forward', LARGE, call, weight=2)
    assert len(races) == 1


def test_layers_of_one_network_are_not_measured_within_one_image():
    """The layers themselves: six equal blocks, three images of each of two sizes."""
    convs, raced = [DepthwiseConv2d(4, 13) for _ in range(6)], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, '_state', choice._State())
        patch.setattr(choice, 'race', lambda calls, device: raced.append(1) or [1.0] * len(calls))
        for autocast in (False, True):
            for training in (False, True):
                for size in (20, 24):
                    for image in range(3):
                        assert not raced
                        with torch.set_grad_enabled(training), torch.autocast('cpu', enabled=autocast):
                            x = torch.randn(1, 4, size, size, requires_grad=training)
                            for conv in convs:
                                x = conv(x)
                            if training:
                                x.sum().backward()
                        if image == 2:
                            assert raced
                            raced.clear()


def test_measuring_takes_at_most_one_percent_of_a_run_after_its_first_minute(fresh, monkeypatch):
    """A clock that counts: every call takes its nominal seconds, every problem is met again and again, as many sizes in
    turn as the table does not hold."""
    clock, races, call = clocked(monkeypatch, {'fft': 0.02, 'dft': 0.03})
    monkeypatch.setattr(choice, '_MAX_PROBLEMS', 50)
    monkeypatch.setattr(choice, 'candidates', lambda step, problem: [(1.0, get('fft', problem)),
                                                                     (1.0, get('native', problem))])
    monkeypatch.setattr(choice, '_trusted', lambda *args: True)
    spent, longest, late = 0.0, 0.0, 0
    for step in range(40000):
        problem = LARGE._replace(height=10 + step // 4 % 60)
        before, held = clock[0], len(races)
        choice.choose('forward', problem, call, weight=1)
        took = clock[0] - before
        if len(races) > held:
            longest = max(longest, took)
            if before > choice._UNLIMITED_SECONDS:
                spent, late = spent + took, late + 1
        clock[0] += 0.1
        assert clock[0] < 70 or spent <= 0.01 * (clock[0] - choice._UNLIMITED_SECONDS) + longest
    assert late > 2, 'nothing was measured after the first minute'


def test_what_disturbed_one_race_does_not_stick(fresh, monkeypatch):
    durations = {'fft': 9.0, 'dft': 2.0}  # something else was running in the first race
    clock, races, call = clocked(monkeypatch, durations)
    problem = LARGE._replace(height=32, width=32)
    monkeypatch.setattr(choice, '_UNLIMITED_SECONDS', inf)
    chosen = []
    for _ in range(200):
        chosen.append(choice.choose('forward', problem, call)[0].name)
        durations['fft'] = 1.0 if 3 <= len(chosen) < 100 else 9.0  # and again in the third
    assert len(races) == 3 and chosen[2] == 'dft'
    assert set(chosen[23:]) == {'fft'}


class Broken:
    """A backend that raises, or is wrong, in some of its passes; ``native`` in everything else."""

    name, joint, keeps, mixes = 'broken', True, False, False

    def __init__(self, failing, error=None, when=lambda problem: True):
        self.failing, self.error, self.when, self.calls = failing, error, when, 0

    def can_run(self, problem):
        return True, ''

    def cost(self, step, problem):
        return 1e-9

    def __getattr__(self, step):
        def run(*args):
            problem = next(a for a in args if isinstance(a, ConvProblem))
            result = getattr(get('native', problem), step)(*args)
            if step in self.failing and self.when(problem):
                self.calls += 1
                if self.error:
                    raise self.error
                return [r + 1 for r in result] if step == 'gradients' else result + 1
            return result
        return run


@pytest.fixture
def broken(fresh, monkeypatch):
    def add(*args, **kwargs):
        backend = Broken(*args, **kwargs)
        monkeypatch.setattr(choice, 'TABLE', (*choice.TABLE, backend))
        return backend
    return add


def outputs_and_gradients(x, w):
    outs = [depthwise_conv2d(x, w) for _ in range(5)]
    grads = [torch.autograd.grad(out, (x, w), torch.ones_like(out)) for out in outs]
    with torch.no_grad():
        outs += [depthwise_conv2d(x, w) for _ in range(5)]
    return outs, grads


EVERY = ('forward', 'inference', 'grad_input', 'grad_weight', 'gradients')
LATER = dict(when=lambda problem: problem.height == 15)  # than in the check on a small problem


@pytest.mark.parametrize('failing', [EVERY, EVERY[:2], EVERY[2:]], ids=['all', 'forward', 'backward'])
@pytest.mark.parametrize('error', [RuntimeError('no C compiler'), torch.cuda.OutOfMemoryError('out of memory'), None])
@pytest.mark.parametrize('later', [False, True])
def test_a_backend_that_fails_is_disabled_with_one_warning(broken, failing, error, later):
    if later and error is None:
        pytest.skip('a wrong result is found by the check only')
    backend = broken(failing, error, **(LATER if later else {}))
    x, w = torch.randn(2, 3, 15, 12, requires_grad=True), torch.randn(3, 1, 9, 9, requires_grad=True)
    expected = torch.nn.functional.conv2d(x, w, padding=4, groups=3)
    wanted = torch.autograd.grad(expected, (x, w), torch.ones_like(expected))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        outs, grads = outputs_and_gradients(x, w)
        calls = backend.calls
        outputs_and_gradients(x, w)
    for out in outs:
        assert relative_error(out, expected) < 2e-6
    for pair in grads:
        assert all(relative_error(a, b) < 2e-6 for a, b in zip(pair, wanted))
    texts = {RuntimeError: 'no C compiler', torch.cuda.OutOfMemoryError: 'out of memory'}
    text = texts.get(type(error), 'that of native')
    message, = [str(w.message) for w in caught if 'depthwise backend' in str(w.message)]
    assert "'broken' is not chosen again" in message and 'cpu' in message and text in message
    assert backend.calls == calls > 0


def test_a_candidate_that_fails_in_a_race_does_not_end_it(broken):
    backend = broken(('forward', ), RuntimeError('illegal'), **LATER)
    backend.cost = lambda step, problem: 1e-6 * (problem.height == 15) + choice._native.cost(step, problem)
    x, w = torch.randn(1, 2, 15, 9), torch.randn(2, 1, 3, 3, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="'broken' is not chosen again on cpu .*: RuntimeError: illegal"):
        outs = [depthwise_conv2d(x, w) for _ in range(3)]
    assert backend.calls == 1
    for out in outs:
        assert relative_error(out, torch.nn.functional.conv2d(x, w, padding=1, groups=2)) < 2e-6


def test_out_of_memory_leaves_smaller_maps_alone(broken):
    backend = broken(EVERY, torch.cuda.OutOfMemoryError('out of memory'), when=lambda problem: problem.height > 30)
    problem = LARGE._replace(height=64)
    choice.disable(backend, problem, backend.error)
    for height, able in ((128, False), (64, False), (63, True)):
        names = [b.name for _, b in choice.candidates('forward', LARGE._replace(height=height))]
        assert ('broken' in names) is able


def test_what_native_cannot_either_is_not_the_backends_fault(broken):
    backend, error = broken(EVERY, RuntimeError('broken')), RuntimeError('out of everything')

    def call(method):
        raise error

    with pytest.raises(RuntimeError, match='out of everything'):
        choice.attempt(call, backend, LARGE)
    assert not choice._state.failed


@pytest.mark.parametrize('step', STEPS)
def test_what_mixes_images_is_for_training_alone(fresh, step):
    """Forward passes too: that is what a compiled function runs in inference."""
    names = [backend.name for _, backend in choice.candidates(step, LARGE._replace(batch=2))]
    assert ('fft_pairs' in names) is (step not in ('inference', 'forward'))


def test_an_image_does_not_depend_on_its_batch(fresh):
    for size in (20, 48, 96):
        x, w = torch.randn(3, 8, size, size), torch.randn(8, 1, 13, 13)
        loud = x.clone()
        loud[1:] *= 1e4
        loud[2] = float('inf')
        exact = depthwise_conv2d_reference(x[:1], w)
        for batch in (x, loud):
            for _ in range(4):
                with torch.no_grad():
                    assert (depthwise_conv2d(batch, w)[:1] - exact).abs().max() < 5e-6 * exact.abs().max()
            out = torch.compile(depthwise_conv2d, backend='aot_eager')(batch, w)
            assert (out[:1] - exact).abs().max() < 5e-6 * exact.abs().max()


def test_a_spectrum_loses_what_is_badly_scaled_and_the_switch_keeps_it():
    x, w = torch.randn(1, 2, 96, 96), torch.randn(2, 1, 31, 31) / 31
    x[0, :, 0, 0] = 1e5
    exact, far = depthwise_conv2d_reference(x, w), (..., slice(40, None), slice(40, None))
    assert (depthwise_conv2d(x, w, backend='fft') - exact)[far].abs().max() > 1e-4
    with use_backend('padded'):
        assert (depthwise_conv2d(x, w) - exact)[far].abs().max() < 1e-5


@pytest.fixture
def ran(monkeypatch):
    names = []
    for backend in list_backends():
        for step in ('forward', 'gradients'):
            monkeypatch.setattr(backend, step, lambda *args, name=backend.name, run=getattr(backend, step): (
                names.append(name) or run(*args)))
    return names


def test_use_backend(ran, monkeypatch):
    x, w = torch.randn(1, 2, 12, 12, requires_grad=True), torch.randn(2, 1, 7, 7, requires_grad=True)

    def names(run=lambda: depthwise_conv2d(x, w)):
        ran.clear()
        run()
        return {*ran}

    with use_backend('padded'):
        out = depthwise_conv2d(x, w)
        assert names() == {'padded'}
        assert names(lambda: depthwise_conv2d(x, w, backend='channels_last')) == {'channels_last'}
        with use_backend('dft'):
            assert names() == {'dft'}
        assert names() == {'padded'}
    assert names(out.sum().backward) == {'padded'}  # of a forward pass in the context
    monkeypatch.setenv('MMLK_BACKEND', 'dft')
    assert names() == {'dft'}
    with use_backend('padded'):
        assert names() == {'padded'}
    monkeypatch.setenv('MMLK_BACKEND', '')
    with pytest.raises(ValueError, match="use_backend: no depthwise backend 'cutlass'; there are native, padded"):
        with use_backend('cutlass'):
            pass
    monkeypatch.setenv('MMLK_BACKEND', 'cutlass')
    with pytest.raises(ValueError, match="MMLK_BACKEND: no depthwise backend 'cutlass'; there are native, padded"):
        depthwise_conv2d(x, w)
    with use_backend('dft'), pytest.raises(ValueError, match="'dft' cannot run here: .* 303 long"):
        depthwise_conv2d(torch.randn(1, 2, 300, 9), w)
    with use_backend('dft'):
        assert depthwise_conv2d(x.to('meta'), w.to('meta')).shape == x.shape


def test_use_backend_holds_for_its_thread(ran, monkeypatch):
    x, w = torch.randn(1, 2, 12, 12), torch.randn(2, 1, 7, 7, requires_grad=True)

    def elsewhere():
        thread = threading.Thread(target=depthwise_conv2d, args=(x, w))
        ran.clear()
        thread.start()
        thread.join()
        return {*ran}

    monkeypatch.setattr('mmlk.ops.depthwise.choose', lambda step, problem, run, weight: (get('native', problem), 1.0))
    with use_backend('padded'):
        assert elsewhere() == {'native'}
        monkeypatch.setenv('MMLK_BACKEND', 'channels_last')
        assert elsewhere() == {'channels_last'}


def test_use_backend_around_compiled_functions(ran):
    torch.compiler.reset()
    x, w = torch.randn(1, 2, 12, 12, requires_grad=True), torch.randn(2, 1, 7, 7, requires_grad=True)
    compiled = torch.compile(depthwise_conv2d, backend='aot_eager', fullgraph=True)
    for name in ('padded', 'dft'):
        with use_backend(name):
            ran.clear()
            compiled(x, w).sum().backward()
            assert ran == [name] * 2  # forward, and both gradients
