"""Runs chunks of channels in parallel, one chunk per thread.

PyTorch usually runs each operator on all threads. At the end of an operator, all threads wait for the slowest one. A
chunk of channels needs about ten short operators, each of a fraction of a millisecond. If another process uses one core
for a few milliseconds at a time, nearly every one of these operators has to wait for it.

On a busy machine the parallelism is therefore on the outside: each thread takes the next chunk, runs all its operators
with a single PyTorch thread, and takes another chunk. Threads only wait for each other once, at the end, and a thread
that was disturbed has simply computed fewer chunks. This is dynamic scheduling, as OpenMP's ``schedule(dynamic)`` does
it (OpenMP API 5.0, section 2.9.2). On an idle machine the threads would use the shared caches less well, which costs up
to a third of the time. So this way is only taken after the operating system has often taken cores away from this
process, which it counts as involuntary context switches: on two cores about 35 per second on an idle machine, and about
190 per second beside one busy process. The threads of this way switch more often by themselves, so their count says
nothing: after two seconds the usual way is taken again, for as long as it takes to count.

``torch.set_num_threads`` only helps if its setting can differ from thread to thread, which depends on how PyTorch was
built. :func:`_start` tests that, and otherwise everything runs in the calling thread.
"""
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch

from .._private import modes_active

try:
    import resource
except ImportError:  # not available on Windows, where everything runs in the calling thread
    resource = None  # type: ignore[assignment]

_MAX_THREADS = 8  # maximum number of threads; more would often wait for Python's global interpreter lock
_WINDOW = 0.1  # seconds of calls over which context switches are counted
_BUSY_SECONDS = 2.0  # seconds of calls for which the machine counts as busy before they are counted again
BUSY_RATE = 90.0  #: Involuntary context switches per second from which on the machine counts as busy.

_now = time.perf_counter

_lock = threading.Lock()
_pools: Dict[Tuple[int, int], Optional[ThreadPoolExecutor]] = {}  # by process (a fork has no threads) and count


class _Machine:
    """Whether other processes have recently used the cores of this machine."""

    def __init__(self) -> None:
        self.busy, self.switches, self.seconds = False, 0, 0.0

    def note(self, switches: int, seconds: float) -> None:
        """Records a call of ``seconds`` in which there were ``switches`` involuntary context switches."""
        self.switches += switches
        self.seconds += seconds
        if self.seconds >= (_BUSY_SECONDS if self.busy else _WINDOW):
            self.busy = not self.busy and self.switches >= BUSY_RATE * self.seconds
            self.switches, self.seconds = 0, 0.0


_machine = _Machine()


def involuntary_switches() -> int:
    """Returns how often the operating system has taken a core away from a running thread of this process."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _one_thread() -> bool:
    """Sets one thread for operators that the calling thread runs. Returns whether OpenMP and MKL have followed."""
    torch.set_num_threads(1)
    return set(re.findall(r'(?:get_num|max)_threads\(\) : (\d+)', torch.__config__.parallel_info())) == {'1'}


def _start(count: int) -> Optional[ThreadPoolExecutor]:
    """Returns a pool of ``count`` threads; None if the number of threads cannot be set for one thread alone."""
    before = torch.__config__.parallel_info()
    with ThreadPoolExecutor(1) as another:
        default = another.submit(torch.get_num_threads).result()  # the default that a new thread has
        pool, started = ThreadPoolExecutor(count, 'mmlk-chunks'), threading.Barrier(count)

        def start() -> bool:
            started.wait()  # wait until every thread of the pool has one task
            return _one_thread()

        ready = [future.result() for future in [pool.submit(start) for _ in range(count)]]
        another.submit(torch.set_num_threads, default).result()  # the last setting would be the default of new threads
    if all(ready) and torch.__config__.parallel_info() == before:
        return pool
    pool.shutdown()
    return None


def _pool(count: int) -> Optional[ThreadPoolExecutor]:
    """Returns this process's pool of ``count`` threads, and starts it if needed; None as :func:`_start`."""
    key = os.getpid(), count
    if key not in _pools:
        with _lock:
            if key not in _pools:
                _pools[key] = _start(count)
    return _pools[key]


def each(device: torch.device, function: Callable[..., Any], *columns: Iterable[Any]) -> List[Any]:
    """Returns ``list(map(function, *columns))``, computed by several threads on a CPU.

    The number of threads is ``torch.get_num_threads()``. Everything runs in the calling thread if the machine is not
    busy, if that number is 1 or more than ``_MAX_THREADS``, or if there is only one task.

    Args:
        device: The device of the tensors.
        function: The function to call. It must not need gradients.
        columns: One iterable for each argument of ``function``.

    Raises:
        Exception: The first exception that a call has raised. All calls have ended then.
    """
    tasks = list(zip(*columns))
    count = torch.get_num_threads()
    alone = (device.type != 'cpu' or not 1 < count <= _MAX_THREADS or len(tasks) < 2
             or modes_active())  # a mode, for example a FLOP counter, only sees the operators of its own thread
    if alone:
        return [function(*task) for task in tasks]
    before, started = involuntary_switches(), _now()
    try:
        pool = _pool(count) if _machine.busy else None
        return _in_parallel(pool, count, function, tasks) if pool else [function(*task) for task in tasks]
    finally:
        _machine.note(involuntary_switches() - before, _now() - started)


def _in_parallel(pool: ThreadPoolExecutor, count: int, function: Callable[..., Any], tasks: List[Tuple[Any, ...]]
                 ) -> List[Any]:
    """Returns the results of all tasks, computed by ``count`` threads of the pool."""
    results: List[Any] = [None] * len(tasks)
    rest, inference = iter(range(len(tasks))), torch.is_inference_mode_enabled()

    def work() -> None:
        with torch.inference_mode(inference), torch.no_grad():
            for i in rest:  # the threads share the iterator, so each takes other numbers
                results[i] = function(*tasks[i])

    workers = []
    try:
        for _ in range(min(count, len(tasks))):
            workers.append(pool.submit(work))
    except RuntimeError:  # the interpreter is exiting and accepts no new tasks
        work()
    errors = [worker.exception() for worker in workers]
    for error in errors:
        if error is not None:
            raise error
    return results
