"""Which backend runs which pass: estimated at first, measured where a problem comes back.

The estimates are rough, so they only say which backends are worth a measurement. A problem that is met for the third
time is measured on its own tensors, once per process, device, thread count and pass; images of ever new sizes are never
measured. ``torch.use_deterministic_algorithms(True)`` leaves it at the estimates, which depend on the problem alone.
"""
import logging
import time
from collections import Counter
from typing import Callable, Dict, List, Tuple

import torch

from .backends import TABLE, Backend, Problem

_logger = logging.getLogger(__name__)

_MEETINGS = 3  # with a problem before it is measured
_WORTH = 4  # estimates up to this many times the least are measured
_RUNS = 3  # timed runs of a backend, after one that is not; the fastest counts

_chosen: Dict[tuple, Tuple[Backend, float]] = {}
_met: Counter = Counter()


def candidates(step: str, problem: Problem) -> List[Tuple[float, Backend]]:
    """Backends that can run the problem, with their estimated seconds, the least first."""
    able = []
    for backend in TABLE:
        if step == 'gradients' and not backend.joint:
            continue
        ok, reason = backend.can_run(problem)
        if ok:
            able.append((backend.cost(step, problem), backend))
        else:
            _logger.debug('%s of %s: not %s: %s', step, problem, backend.name, reason)
    return sorted(able, key=lambda pair: pair[0])


def seconds(call: Callable[[], object], device: torch.device, runs: int = _RUNS, bound: float = float('inf')) -> float:
    """Least time of ``runs`` calls after a first one; gives up after a run that took twice ``bound``."""

    def once():
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        call()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    once()
    least = once()
    for _ in range(runs - 1):
        if least > 2 * bound:
            break
        least = min(least, once())
    return least


def choose(step: str, problem: Problem, call: Callable[[Backend], object]) -> Tuple[Backend, float]:
    """The backend for one pass (one of ``STEPS``) and its seconds; ``call(backend)`` runs the pass to measure it."""
    fixed = torch.are_deterministic_algorithms_enabled()
    key = step, problem, torch.get_num_threads(), fixed
    if key in _chosen:
        return _chosen[key]
    pairs = candidates(step, problem)
    worth = [(backend, cost) for cost, backend in pairs if cost <= _WORTH * pairs[0][0]]
    if not fixed and len(worth) > 1:
        _met[key] += 1
        if _met[key] < _MEETINGS or _capturing(problem.device):
            return worth[0]
        del _met[key]
        least = float('inf')
        for i, (backend, _) in enumerate(worth):
            worth[i] = backend, seconds(lambda: call(backend), problem.device, bound=least)
            least = min(least, worth[i][1])
        worth.sort(key=lambda pair: pair[1])
    _logger.debug('%s of %s: %s (%s)', step, problem, ', '.join(f'{b.name} {cost * 1e3:.3f} ms' for b, cost in worth),
                  'estimated' if fixed or len(worth) == 1 else 'measured')
    _chosen[key] = worth[0]
    return worth[0]


def _capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, in which nothing can be timed."""
    return device.type == 'cuda' and torch.cuda.is_current_stream_capturing()
