"""Chooses the backend for each step of a convolution: first by an estimate, later by a measurement.

Several backends compute the same convolution, and which one is fastest depends on the shapes, the dtype and the
machine. Each backend can estimate its own time (:meth:`.backends.Backend.cost`). The estimates are rough, so they are
only used at first, and to decide which backends are worth measuring. If the same problem comes again, the backends are
timed on its real tensors, and from then on the fastest is used. This is the idea of cuDNN's benchmark mode
(``torch.backends.cudnn.benchmark``) and of FFTW's planner (Frigo and Johnson, Proceedings of the IEEE 93, 2005).

- When to measure: in the third call with the same problem and the same weight. A network with many equal blocks
  therefore measures in the third image or training step, and images whose sizes keep changing are never measured.
- In :func:`measure_at_once` it is measured in the first call.
- Measurements are kept separately for each problem (:class:`.backends.ConvProblem`, which includes the device), number
  of threads and step.
- Repetition: a problem is measured again at its 24th call, its 192nd and so on. The minimum of all measurements counts,
  so that a disturbance of one of them has no lasting effect.
- Limit: after the first minute of a run, measuring takes at most 1 % of the run.
- Determinism: with ``torch.use_deterministic_algorithms(True)`` only the estimates are used, because they depend on the
  problem alone.
- Safety: a backend that raises an error is not chosen on that device again. The same holds for a backend whose first
  result for a device and dtype differs from that of ``native``. ``native`` is the fallback.
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
_TIMING_SECONDS = 0.05  # after the minimum number of rounds: timing stops once the fastest backend ran this long
_UNLIMITED_SECONDS = 60  # at the start of a run, measuring takes as long as it needs for this many seconds
_MEASURING_SHARE = 0.01  # after that, the maximum share of the run that is spent on measuring
_MAX_PAUSE = 10  # seconds between two calls; of a longer pause only this many count as part of the run
_MAX_PROBLEMS = 4096  # the least recently used problems beyond this number are removed

# Maximum relative error (ratio of norms) of a backend in its first check. It is loose because it must detect wrong
# results, not rounding: float32 may be multiplied as tf32.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 5e-2}

_at_once: ContextVar[bool] = ContextVar('mmlk_measure_at_once', default=False)
_now = time.perf_counter
_native = TABLE[0]


class _Step:
    """The estimates and measurements for one step of one problem."""

    __slots__ = ('pairs', 'weight', 'meetings', 'others', 'due', 'seconds')

    def __init__(self, pairs: List[Tuple[float, Backend]]):
        self.pairs = pairs  # (estimated seconds, backend), in ascending order
        self.weight: Optional[int] = None  # address of the weight whose calls are counted
        self.meetings, self.others, self.due = 0, 0, _FIRST_MEASUREMENT
        self.seconds: Optional[Dict[Backend, float]] = None  # minimum of the measured seconds

    def meet(self, weight: Optional[int]) -> None:
        """Counts a call with the weight at this address, if it is the weight whose calls are counted."""
        if weight == self.weight or self.others >= _MAX_OTHER_CALLS or not self.meetings:
            self.weight, self.others = weight, 0
            self.meetings += 1
        else:
            self.others += 1


class _State:
    """All estimates, measurements and failures of this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.problems: 'OrderedDict[Tuple[ConvProblem, int], Dict[str, _Step]]' = OrderedDict()
        self.failed: Dict[Tuple[str, torch.device], int] = {}  # minimum elements of an input that failed
        self.trusted: Set[Tuple[str, torch.device, torch.dtype, bool]] = set()
        self.racing = False
        self.run = self.spent = 0.0  # seconds; those of measurements after _UNLIMITED_SECONDS
        self.last: Optional[float] = None

    def step(self, name: str, problem: ConvProblem) -> _Step:
        """Returns the entry for this step of the problem and the current number of threads; creates it if needed."""
        key = problem, torch.get_num_threads()
        steps = self.problems.setdefault(key, {})
        self.problems.move_to_end(key)
        while len(self.problems) > _MAX_PROBLEMS:
            self.problems.popitem(last=False)
        if name not in steps:
            steps[name] = _Step(candidates(name, problem))
        return steps[name]

    def may_measure(self) -> bool:
        """Returns whether no measurement is in progress and the limit for measuring is not reached."""
        return not self.racing and (self.run < _UNLIMITED_SECONDS
                                    or self.spent <= _MEASURING_SHARE * (self.run - _UNLIMITED_SECONDS))

    def tick(self) -> None:
        """Adds the time since the last call to the duration of the run."""
        now = _now()
        if self.last is not None:
            self.run += min(now - self.last, _MAX_PAUSE)
        self.last = now


_state = _State()


def _elements(problem: ConvProblem) -> int:
    return problem.batch * problem.channels * problem.height * problem.width


def candidates(step: str, problem: ConvProblem) -> List[Tuple[float, Backend]]:
    """Returns (estimated seconds, backend) for each backend that can run this step of the problem, in ascending order.

    Backends that failed on the device before are left out.
    """
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
    """Returns the seconds that one call takes. A GPU is synchronized before and after it."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def race(calls: Sequence[Callable[[], object]], device: torch.device) -> List[float]:
    """Returns the minimum seconds of each call over several rounds, in the order of ``calls``.

    Each round times every call once, so that a disturbance affects all of them. A call that takes more than twice the
    minimum is not timed again. The number of rounds is between ``_MIN_ROUNDS`` and ``_MAX_ROUNDS``.
    """

    def again(call: Callable[[], object]) -> float:
        call()  # warm-up, not timed: the call before it has filled the CPU caches with other data
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
    """Raised when a backend raises an error while it is measured."""

    def __init__(self, backend: Backend, error: Exception):
        super().__init__(backend.name)
        self.backend, self.error = backend, error


def disable(backend: Backend, problem: ConvProblem, error: Exception) -> None:
    """Excludes the backend from automatic choice on the problem's device, and warns the first time.

    If ``error`` says that memory ran out, only inputs with at least as many elements are excluded.
    """
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
    """Returns ``call(backend)``. If that raises an error, falls back to ``call(native)`` and disables the backend.

    Raises:
        Exception: ``native`` raises an error too. The backend is not disabled then.
    """
    try:
        return call(backend)
    except Exception as raised:
        if backend is _native:
            raise
        error = raised.with_traceback(None)  # the frames of the traceback would keep tensors alive
    result = call(_native)
    disable(backend, problem, error)
    return result


def _check(backend: Backend, device: torch.device, dtype: torch.dtype, gradients: bool) -> None:
    """Compares a backend with ``native`` on a small problem.

    ``native`` computes in float64 for float64 and in float32 for other dtypes.

    Raises:
        RuntimeError: The relative error is larger than ``_TOLERANCES`` allows.
    """
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
    """Returns whether the backend is correct on this device and in this dtype; checks it the first time.

    A backend that fails the check is disabled.
    """
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
    """Measures the backends in ``worth`` and stores the minimum seconds of each. Disables those that raise an error."""

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
    """Chooses the backend for one step.

    Args:
        step: One of ``STEPS``.
        problem: The problem.
        call: A function that runs the step with a given backend, used to measure it. If None, nothing is measured, and
            the choice rests on what is known so far.
        most: Seconds that another way to compute the same takes. Backends whose estimate is more than
            ``_MAX_COST_RATIO`` times that are not considered.
        weight: Address of the weight. Only the calls with one of the weights that share a problem are counted.

    Returns:
        The backend and its measured (if not measured, estimated) seconds. Returns (None, inf) if no backend can run the
        step, or none within the limit that ``most`` sets.
    """
    fixed = torch.are_deterministic_algorithms_enabled()
    with _state.lock:
        known = _state.step(step, problem)
        least = min([most, *(cost for cost, _ in known.pairs)])
        # if there must be a backend, slow ones are kept as well: the faster ones may fail
        pairs = [pair for pair in known.pairs if pair[0] <= _MAX_COST_RATIO * least or most == inf]
        due = False
        if call is not None and not fixed:
            _state.tick()
            known.meet(weight)
            at_once = _at_once.get() and known.seconds is None and not _state.racing
            due = (at_once or known.meetings >= known.due and _state.may_measure()) and not _capturing(problem.device)
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
    """Chooses the backends for the gradients of input and weight.

    Args:
        problem: The problem.
        call: A function of a step and a backend that runs the step, used to measure it; None to measure nothing.
        weight: Address of the weight, see :func:`choose`.

    Returns:
        A dict from step to backend, and the total seconds. The steps are ``'gradients'`` alone if one backend is faster
        with both at once, otherwise ``'grad_input'`` and ``'grad_weight'``.
    """
    chosen = {step: choose(step, problem, call and partial(call, step), weight=weight)
              for step in ('grad_input', 'grad_weight', 'gradients')}
    together, seconds = chosen.pop('gradients')
    apart = sum(seconds for _, seconds in chosen.values())
    if seconds <= apart and together is not None:
        return {'gradients': together}, seconds
    return {step: backend for step, (backend, _) in chosen.items() if backend is not None}, apart


def choose_training(problem: ConvProblem, call: Optional[Callable[[str, Backend], object]] = None,
                    weight: Optional[int] = None) -> Dict[str, Backend]:
    """Chooses the backends for a forward pass and both gradients. Arguments as in :func:`choose_gradients`.

    Returns:
        A dict from step to backend. The steps are ``'training'`` alone if that is fastest, otherwise ``'forward'`` and
        the steps of :func:`choose_gradients`.
    """
    forward, seconds = choose('forward', problem, call and partial(call, 'forward'), weight=weight)
    gradients, more = choose_gradients(problem, call, weight)
    whole, together = choose('training', problem, call and partial(call, 'training'), seconds + more, weight)
    if whole is not None and together <= seconds + more:
        return {'training': whole}
    assert forward is not None  # native can run every problem
    return {'forward': forward, **gradients}


@contextmanager
def measure_at_once() -> Iterator[None]:
    """A context manager in which the backends of a problem are measured in the first call of that problem.

    It applies to the calling thread, and is for preparations: outside, the first calls are made by the estimates. With
    ``torch.use_deterministic_algorithms(True)`` nothing is measured.
    """
    token = _at_once.set(True)
    try:
        yield
    finally:
        _at_once.reset(token)


_AUTOMATIC = 'automatic'
_insisted: ContextVar[Optional[str]] = ContextVar('mmlk_backend', default=None)


def _known(name: str, source: str) -> str:
    """Returns ``name`` if there is such a backend; otherwise raises a ValueError that begins with ``source``."""
    names = [backend.name for backend in TABLE]
    if name not in (*names, _AUTOMATIC):
        raise ValueError(f"{source}: no depthwise backend '{name}'; there are {', '.join(names)}, and {_AUTOMATIC}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """A context manager in which the operator uses the given backend, unless a call passes ``backend``.

    It applies to the calling thread. In eager mode, the backward pass uses the backend of the forward pass, even if it
    runs outside the context. In a compiled function, the backend is looked up when the function runs. The environment
    variable ``MMLK_BACKEND`` does the same for the whole process; this context has precedence over it.

    Args:
        name: Name of a backend, or ``'automatic'`` for automatic choice.

    Raises:
        ValueError: There is no such backend. Inside the context, a call that the backend cannot run raises the error of
            ``depthwise_conv2d(..., backend=name)``.
    """
    token = _insisted.set(_known(name, 'use_backend'))
    try:
        yield
    finally:
        _insisted.reset(token)


def insisted_backend() -> Optional[str]:
    """Returns the name that :func:`use_backend` or ``MMLK_BACKEND`` gives; None for automatic choice.

    Raises:
        ValueError: ``MMLK_BACKEND`` is not the name of a backend.
    """
    name = _insisted.get()
    if name is None:
        name = os.environ.get('MMLK_BACKEND')
        if not name:
            return None
        _known(name, 'MMLK_BACKEND')
    return None if name == _AUTOMATIC else name


def _capturing(device: torch.device) -> bool:
    """Returns whether a CUDA graph is being captured. Nothing can be timed then."""
    return device.type == 'cuda' and torch.cuda.is_current_stream_capturing()
