"""Which backend runs which pass: estimated at first, measured where a problem comes back.

The estimates are rough, so they only say which backends are worth a measurement. A problem that is met for the third
time is measured on its own tensors, once per process, device, thread count and pass; images of ever new sizes are never
measured. ``torch.use_deterministic_algorithms(True)`` leaves it at the estimates, which depend on the problem alone.
"""
import logging
import time
from collections import OrderedDict
from functools import partial
from math import inf
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch

from .backends import TABLE, Backend, Problem

_logger = logging.getLogger(__name__)

_MEETINGS = 3  # with a problem before it is measured
_WORTH = 4  # estimates up to this many times the least are measured
_TURNS, _SPELL = (4, 20), 0.05  # that backends are timed for, least and most, and seconds for those past the least

_ENTRIES = 4096  # of each table; those that were not met for the longest go

_chosen: 'OrderedDict[tuple, Tuple[Optional[Backend], float]]' = OrderedDict()
_met: 'OrderedDict[tuple, int]' = OrderedDict()


def _keep(table: OrderedDict, key: tuple, value: object) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > _ENTRIES:
        table.popitem(last=False)


def candidates(step: str, problem: Problem) -> List[Tuple[float, Backend]]:
    """Backends that can run the problem, with their estimated seconds, the least first."""
    able = []
    for backend in TABLE:
        if step == 'gradients' and not backend.joint or step == 'training' and not backend.keeps:
            continue
        ok, reason = backend.can_run(problem)
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

    def again(call):
        call()  # not timed: the call before it has taken the caches and rearranged the heap
        return timed(call, device)

    best = [again(call) for call in calls]
    for turn in range(1, _TURNS[1]):
        running = [i for i, seconds in enumerate(best) if seconds <= 2 * min(best)]
        if len(running) == 1 or (turn >= _TURNS[0] and turn * min(best) > _SPELL):
            break
        for i in running:
            best[i] = min(best[i], again(calls[i]))
    return best


def _key(step: str, problem: Problem) -> tuple:
    return step, problem, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()


def choose(step: str, problem: Problem, call: Optional[Callable[[Backend], object]] = None,
           most: float = inf) -> Tuple[Optional[Backend], float]:
    """The backend for one step (one of ``STEPS``) and its seconds.

    ``call(backend)`` runs the step, to measure it; without it, what is known so far. None, and endless seconds, where
    no backend can, or none in anything like ``most`` seconds.
    """
    key = _key(step, problem)
    known = _chosen.get(key)
    if known is not None:
        _keep(_chosen, key, known)
        return known
    pairs = candidates(step, problem)
    least = min([most, *(cost for cost, _ in pairs)])
    worth = [(backend, cost) for cost, backend in pairs if cost <= _WORTH * least]
    best = worth[0] if worth else (None, inf)
    if call is None:
        return best
    fixed = torch.are_deterministic_algorithms_enabled()
    if not fixed:
        meetings = _met.get(key, 0) + 1
        _keep(_met, key, meetings)
        if meetings < _MEETINGS or _capturing(problem.device):
            return best
        _met.pop(key, None)
        if worth:
            times = race([partial(call, backend) for backend, _ in worth], problem.device)
            worth = [(backend, seconds) for (backend, _), seconds in zip(worth, times)]
            worth.sort(key=lambda pair: pair[1])
            best = worth[0]
    _logger.debug('%s of %s: %s (%s)', step, problem, ', '.join(f'{b.name} {cost * 1e3:.3f} ms' for b, cost in worth),
                  'estimated' if fixed else 'measured')
    _keep(_chosen, key, best)
    return best


def choose_gradients(problem: Problem,
                     call: Optional[Callable[[str, Backend], object]] = None) -> Tuple[Dict[str, Backend], float]:
    """The backends of both gradients, by step, and their seconds: ``'grad_input'`` and ``'grad_weight'``, or
    ``'gradients'`` alone."""
    chosen = {step: choose(step, problem, call and partial(call, step))
              for step in ('grad_input', 'grad_weight', 'gradients')}
    together, seconds = chosen.pop('gradients')
    apart = sum(seconds for _, seconds in chosen.values())
    if seconds <= apart:
        return {'gradients': together}, seconds
    return {step: backend for step, (backend, _) in chosen.items()}, apart


def choose_training(problem: Problem, call: Optional[Callable[[str, Backend], object]] = None) -> Dict[str, Backend]:
    """The backends of a forward pass and both gradients, by step: ``'training'`` alone, or ``'forward'`` and those of
    :func:`choose_gradients`."""
    forward, seconds = choose('forward', problem, call and partial(call, 'forward'))
    gradients, more = choose_gradients(problem, call)
    whole, together = choose('training', problem, call and partial(call, 'training'), most=seconds + more)
    return {'training': whole} if together <= seconds + more else {'forward': forward, **gradients}


def _capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, in which nothing can be timed."""
    return device.type == 'cuda' and torch.cuda.is_current_stream_capturing()
