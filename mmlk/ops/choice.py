"""Which backend runs which pass: estimated at first, measured where a problem comes back.

The estimates are rough, so they only say which backends are worth a measurement. A problem that a weight meets for the
third time, which is in the third image or step however many equal blocks a network has, is measured on its own tensors,
for each device, thread count and pass; images of ever new sizes are never measured. It is measured again in its 24th
meeting, its 192nd and so on, and the least seconds of all races count: what disturbed one of them does not stick. After
the first minute of a run at most 1 % of it goes into measuring. ``torch.use_deterministic_algorithms(True)`` leaves it
at the estimates, which depend on the problem alone.

A backend that fails, or whose first result on a device and in a dtype is not that of ``native``, is not chosen there
again.
"""
import logging
import os
import threading
import time
import warnings
from collections import OrderedDict
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from math import inf
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor

from .backends import TABLE, Backend, ConvProblem, remembered
from .backends.base import compute_dtype

_logger = logging.getLogger(__name__)

_FIRST_MEASUREMENT = 3  # a problem is measured at this call of the operator with the same weight
_REPEAT_FACTOR = 8  # it is measured again at 8, 64, ... times that number of calls
_MAX_OTHER_CALLS = 256  # after this many calls with other weights, the counted weight is assumed to be gone
_MAX_COST_RATIO = 4  # backends whose estimate is at most this many times the minimum are measured
_MIN_ROUNDS = 4  # minimum number of rounds of a measurement, each of which times every backend once
_MAX_ROUNDS = 20  # maximum number of rounds
_TIMING_SECONDS = 0.05  # after the minimum number of rounds, timing stops once the fastest backend has run for this long
_UNLIMITED_SECONDS = 60  # at the start of a run, measuring takes as long as it needs for this many seconds
_MEASURING_SHARE = 0.01  # after that, the maximum share of the run that is spent on measuring
_MAX_PAUSE = 10  # seconds between two calls; of a longer pause only this many count as part of the run
_MAX_PROBLEMS = 4096  # the least recently used problems beyond this number are removed

# Maximum relative error (ratio of norms) of a backend in its first check. It is loose because it must detect wrong
# results, not rounding: float32 may be multiplied as tf32.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 5e-2}

_now = time.perf_counter
_native = TABLE[0]


class _Step:
    """What is known of one step of a problem."""

    __slots__ = ('pairs', 'weight', 'meetings', 'others', 'due', 'seconds')

    def __init__(self, pairs: List[Tuple[float, Backend]]):
        self.pairs = pairs  # estimated
        self.weight: Optional[int] = None  # whose meetings are counted
        self.meetings, self.others, self.due = 0, 0, _FIRST_MEASUREMENT
        self.seconds: Optional[Dict[Backend, float]] = None  # measured

    def meet(self, weight: Optional[int]) -> None:
        if weight == self.weight or self.others >= _MAX_OTHER_CALLS or not self.meetings:
            self.weight, self.others = weight, 0
            self.meetings += 1
        else:
            self.others += 1


class _State:
    """All that a process knows."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.problems: 'OrderedDict[Tuple[ConvProblem, int], Dict[str, _Step]]' = OrderedDict()
        self.failed: Dict[Tuple[str, torch.device], int] = {}  # with maps of so many elements or more
        self.trusted: Set[Tuple[str, torch.device, torch.dtype, bool]] = set()
        self.racing = False
        self.run = self.spent = 0.0  # seconds of the run, and those of races after its first minute
        self.last: Optional[float] = None

    def step(self, name: str, problem: ConvProblem) -> _Step:
        key = problem, torch.get_num_threads()
        steps = self.problems.setdefault(key, {})
        self.problems.move_to_end(key)
        while len(self.problems) > _MAX_PROBLEMS:
            self.problems.popitem(last=False)
        if name not in steps:
            steps[name] = _Step(candidates(name, problem))
        return steps[name]

    def may_measure(self) -> bool:
        return not self.racing and (self.run < _UNLIMITED_SECONDS
                                    or self.spent <= _MEASURING_SHARE * (self.run - _UNLIMITED_SECONDS))

    def tick(self) -> None:
        now = _now()
        if self.last is not None:
            self.run += min(now - self.last, _MAX_PAUSE)
        self.last = now


_state = _State()


def _elements(problem: ConvProblem) -> int:
    return problem.batch * problem.channels * problem.height * problem.width


def candidates(step: str, problem: ConvProblem) -> List[Tuple[float, Backend]]:
    """Backends that can run the problem, with their estimated seconds, the least first."""
    able = []
    for backend in TABLE:
        if step == 'gradients' and not backend.joint or step == 'training' and not backend.keeps:
            continue
        if step in ('inference', 'forward') and backend.mixes:
            continue
        ok, reason = backend.can_run(problem)
        if ok and _elements(problem) >= _state.failed.get((backend.name, problem.device), inf):
            ok, reason = False, 'it failed on this device before'
        if ok:
            able.append((backend.cost(step, problem), backend))
        else:
            _logger.debug('%s of %s: not %s: %s', step, problem, backend.name, reason)
    return sorted(able, key=lambda pair: pair[0])


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, on a GPU from idle to idle."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def race(calls: Sequence[Callable[[], object]], device: torch.device) -> List[float]:
    """Least seconds of each call, taken in turns so that a disturbance hits all of them; the slow drop out early."""

    def again(call: Callable[[], object]) -> float:
        call()  # not timed: the call before it has taken the caches and rearranged the heap
        return timed(call, device)

    best = [again(call) for call in calls]
    for turn in range(1, _MAX_ROUNDS):
        running = [i for i, seconds in enumerate(best) if seconds <= 2 * min(best)]
        if len(running) == 1 or (turn >= _MIN_ROUNDS and turn * min(best) > _TIMING_SECONDS):
            break
        for i in running:
            best[i] = min(best[i], again(calls[i]))
    return best


class _Failed(Exception):
    """A backend raised in a race."""

    def __init__(self, backend: Backend, error: Exception):
        super().__init__(backend.name)
        self.backend, self.error = backend, error


def disable(backend: Backend, problem: ConvProblem, error: Exception) -> None:
    """Do not choose a backend again on the problem's device, or, where memory ran out, for maps as large as its; warn
    once."""
    memory = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
    least, key = _elements(problem) if memory else 0, (backend.name, problem.device)
    with _state.lock:
        first = key not in _state.failed
        _state.failed[key] = min(least, _state.failed.get(key, least))
        _state.problems.clear()
    if first:
        where = f'for maps of {least} elements or more on {problem.device}' if memory else f'on {problem.device}'
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"depthwise backend '{backend.name}' is not chosen again {where} in this process, for it failed: "
                      f'{type(error).__name__}: {text}', RuntimeWarning, stacklevel=2)


def attempt(call: Callable[[Backend], object], backend: Backend, problem: ConvProblem) -> object:
    """``call(backend)``; where that raises, ``native``'s, and the backend is disabled if ``native`` does better."""
    try:
        return call(backend)
    except Exception as raised:
        if backend is _native:
            raise
        error = raised.with_traceback(None)  # whose frames hold memory
    result = call(_native)
    disable(backend, problem, error)
    return result


def _check(backend: Backend, device: torch.device, dtype: torch.dtype, gradients: bool) -> None:
    """Raise where a backend's result on a small problem is not that of ``native`` in float32 or float64."""
    small = ConvProblem(device, dtype, 3, 4, 20, 18, 11, 9)
    if not backend.can_run(small)[0]:
        return

    def tensor(*shape: int) -> Tensor:
        values = torch.arange(torch.Size(shape).numel(), dtype=torch.float64, device='cpu')
        return (1.7 * values + len(shape) * values.square() / 64).sin().reshape(shape).to(device, dtype)

    x, weight, bias, grad = tensor(3, 4, 20, 18), tensor(4, 1, 11, 9), tensor(4), tensor(3, 4, 20, 18).flip(0)
    kept: List[Tensor] = []
    ours = [backend.forward(x, weight, bias, small, *[kept] * (gradients and backend.keeps))]
    if gradients:
        ours += backend.gradients(grad, x, weight, small, *[kept] * backend.keeps)
    wide = small._replace(dtype=compute_dtype(dtype))
    x, weight, bias, grad = (t.to(wide.dtype) for t in (x, weight, bias, grad))
    theirs = [_native.forward(x, weight, bias, wide)]
    if gradients:
        theirs += _native.gradients(grad, x, weight, wide)
    for name, a, b in zip(('output', "input's gradient", "weight's gradient"), ours, theirs):
        error = ((a.to(wide.dtype) - b).norm() / b.norm()).item()
        if not error <= _TOLERANCES.get(dtype, 1e-2):
            raise RuntimeError(f'its {name} on a small problem in {dtype} is {error:.1e} off that of native')


def _trusted(backend: Backend, step: str, problem: ConvProblem) -> bool:
    """Whether the backend's first result on this device and in this dtype was right, which is found out here."""
    gradients = step not in ('inference', 'forward')
    key = backend.name, problem.device, problem.dtype, gradients
    if backend is _native or key in _state.trusted:
        return True
    if _elements(problem) >= _state.failed.get(key[:2], inf) or _capturing(problem.device):
        return False
    try:
        with torch.no_grad():
            _check(backend, problem.device, problem.dtype, gradients)
    except Exception as error:
        disable(backend, problem, error)
        return False
    _state.trusted.add(key)
    return True


def _measure(problem: ConvProblem, known: _Step, worth: List[Backend], call: Callable[[Backend], object]) -> None:
    """Let backends race, and remember their least seconds."""

    def tried(backend: Backend) -> object:
        try:
            return call(backend)
        except Exception as error:
            raise _Failed(backend, error.with_traceback(None)) from None

    started, free = _now(), _state.run < _UNLIMITED_SECONDS
    times: List[float] = []
    while worth and not times:
        try:
            times = race([partial(tried, backend) for backend in worth], problem.device)
        except _Failed as failed:
            worth = [backend for backend in worth if backend is not failed.backend]
            if failed.backend is not _native:
                disable(failed.backend, problem, failed.error)
    with _state.lock:
        if not free:
            _state.spent += _now() - started
        known.seconds = known.seconds or {}
        for backend, seconds in zip(worth, times):
            known.seconds[backend] = min(seconds, known.seconds.get(backend, inf))
        known.due = known.meetings * _REPEAT_FACTOR


def choose(step: str, problem: ConvProblem, call: Optional[Callable[[Backend], object]] = None, most: float = inf,
           weight: Optional[int] = None) -> Tuple[Optional[Backend], float]:
    """The backend for one step (one of ``STEPS``) and its seconds.

    ``call(backend)`` runs the step, to measure it; without it, what is known so far. None, and endless seconds, where
    no backend can, or none in anything like ``most`` seconds. ``weight`` tells the weights apart: only the meetings of
    one of them with the problem are counted.
    """
    fixed = torch.are_deterministic_algorithms_enabled()
    with _state.lock:
        known = _state.step(step, problem)
        least = min([most, *(cost for cost, _ in known.pairs)])
        # past what is worth it, too, where there must be one: the first may turn out not to work
        pairs = [pair for pair in known.pairs if pair[0] <= _MAX_COST_RATIO * least or most == inf]
        due = False
        if call is not None and not fixed:
            _state.tick()
            known.meet(weight)
            due = known.meetings >= known.due and not _capturing(problem.device) and _state.may_measure()
            _state.racing = _state.racing or due
    if due and call is not None:
        try:
            worth = [backend for cost, backend in pairs
                     if cost <= _MAX_COST_RATIO * least and _trusted(backend, step, problem)]
            _measure(problem, known, worth, call)
        finally:
            _state.racing = False
    if known.seconds and not fixed:
        seconds = {backend: known.seconds[backend] for _, backend in pairs if backend in known.seconds}
        if seconds:
            best = min(seconds, key=seconds.__getitem__)
            if due and call is not None:
                if step == 'inference':
                    remembered.forget(problem, keep=best.name)
                _logger.debug('%s of %s: %s (measured)', step, problem,
                              ', '.join(f'{b.name} {s * 1e3:.3f} ms' for b, s in seconds.items()))
            return best, seconds[best]
    for cost, backend in pairs:
        if call is None or _trusted(backend, step, problem):
            return backend, cost
    return None, inf


def choose_gradients(problem: ConvProblem, call: Optional[Callable[[str, Backend], object]] = None,
                     weight: Optional[int] = None) -> Tuple[Dict[str, Backend], float]:
    """The backends of both gradients, by step, and their seconds: ``'grad_input'`` and ``'grad_weight'``, or
    ``'gradients'`` alone."""
    chosen = {step: choose(step, problem, call and partial(call, step), weight=weight)
              for step in ('grad_input', 'grad_weight', 'gradients')}
    together, seconds = chosen.pop('gradients')
    apart = sum(seconds for _, seconds in chosen.values())
    if seconds <= apart and together is not None:
        return {'gradients': together}, seconds
    return {step: backend for step, (backend, _) in chosen.items() if backend is not None}, apart


def choose_training(problem: ConvProblem, call: Optional[Callable[[str, Backend], object]] = None,
                    weight: Optional[int] = None) -> Dict[str, Backend]:
    """The backends of a forward pass and both gradients, by step: ``'training'`` alone, or ``'forward'`` and those of
    :func:`choose_gradients`."""
    forward, seconds = choose('forward', problem, call and partial(call, 'forward'), weight=weight)
    gradients, more = choose_gradients(problem, call, weight)
    whole, together = choose('training', problem, call and partial(call, 'training'), seconds + more, weight)
    if whole is not None and together <= seconds + more:
        return {'training': whole}
    assert forward is not None  # native runs everything
    return {'forward': forward, **gradients}


_AUTOMATIC = 'automatic'
_insisted: ContextVar[Optional[str]] = ContextVar('mmlk_backend', default=None)


def _known(name: str, source: str) -> str:
    names = [backend.name for backend in TABLE]
    if name not in (*names, _AUTOMATIC):
        raise ValueError(f"{source}: no depthwise backend '{name}'; there are {', '.join(names)}, and {_AUTOMATIC}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """A context in which every call of the operator without a ``backend`` has this one.

    It holds for the calling thread, and in an eager backward pass for whatever ran forward in it. Around a compiled
    function it holds as well, for what runs in it. The environment variable ``MMLK_BACKEND`` does the same for the
    whole process; this context goes before it.

    Args:
        name: Name of a backend, or ``'automatic'``.

    Raises:
        ValueError: No such backend. A call that the backend cannot run raises as with ``backend=name``.
    """
    token = _insisted.set(_known(name, 'use_backend'))
    try:
        yield
    finally:
        _insisted.reset(token)


def insisted_backend() -> Optional[str]:
    """The backend of :func:`use_backend` or ``MMLK_BACKEND``; None for automatic choice.

    Raises:
        ValueError: ``MMLK_BACKEND`` names no backend.
    """
    name = _insisted.get()
    if name is None:
        name = os.environ.get('MMLK_BACKEND')
        if not name:
            return None
        _known(name, 'MMLK_BACKEND')
    return None if name == _AUTOMATIC else name


def _capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, in which nothing can be timed."""
    return device.type == 'cuda' and torch.cuda.is_current_stream_capturing()
