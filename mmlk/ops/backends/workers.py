"""Threads that compute chunks of channels side by side, each running PyTorch's operators on one thread.

An operator that PyTorch spreads over all threads waits for the slowest of them. A chunk takes some ten operators, each
of a fraction of a millisecond, so where another process takes a core for a few milliseconds at a time nearly every one
of them waits. Chunks that are dealt out wait once, at the end.
"""
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch

from .._private import modes_active

_MAX_THREADS = 8  # threads: between two operators each of them holds Python's lock

_lock = threading.Lock()
_pools: Dict[Tuple[int, int], Optional[ThreadPoolExecutor]] = {}  # by process, for a fork has none of the threads


def _one_thread() -> bool:
    """Let the calling thread run operators on one thread; whether that holds for PyTorch's own and for MKL's."""
    torch.set_num_threads(1)
    return set(re.findall(r'(?:get_num|max)_threads\(\) : (\d+)', torch.__config__.parallel_info())) == {'1'}


def _start(count: int) -> Optional[ThreadPoolExecutor]:
    """So many threads; None where the number of an operator's threads cannot be set for one of them alone."""
    before = torch.__config__.parallel_info()
    with ThreadPoolExecutor(1) as another:
        default = another.submit(torch.get_num_threads).result()  # of a new thread
        pool, started = ThreadPoolExecutor(count, 'mmlk-chunks'), threading.Barrier(count)

        def start() -> bool:
            started.wait()  # until each thread has a task
            return _one_thread()

        ready = [future.result() for future in [pool.submit(start) for _ in range(count)]]
        another.submit(torch.set_num_threads, default).result()  # a new thread starts from what was set last
    if all(ready) and torch.__config__.parallel_info() == before:
        return pool
    pool.shutdown()
    return None


def _pool(count: int) -> Optional[ThreadPoolExecutor]:
    key = os.getpid(), count
    if key not in _pools:
        with _lock:
            if key not in _pools:
                _pools[key] = _start(count)
    return _pools[key]


def each(device: torch.device, function: Callable[..., Any], *columns: Iterable[Any]) -> List[Any]:
    """``list(map(function, *columns))`` for a function that works on a device, and records no gradients.

    On a CPU as many threads as PyTorch takes for an operator call it, or the calling thread alone where that is one
    thread, or more than this pays for.

    Raises:
        Exception: What a call has raised, once no call is running any more.
    """
    tasks = list(zip(*columns))
    count = torch.get_num_threads()
    alone = (device.type != 'cpu' or not 1 < count <= _MAX_THREADS or len(tasks) < 2
             or modes_active())  # a mode, a counter for example, sees what its own thread runs
    pool = None if alone else _pool(count)
    if pool is None:
        return [function(*task) for task in tasks]
    results: List[Any] = [None] * len(tasks)
    rest, inference = iter(range(len(tasks))), torch.is_inference_mode_enabled()

    def work() -> None:
        with torch.inference_mode(inference), torch.no_grad():
            for i in rest:  # which hands each number to one thread
                results[i] = function(*tasks[i])

    workers = []
    try:
        for _ in range(min(count, len(tasks))):
            workers.append(pool.submit(work))
    except RuntimeError:  # the interpreter is about to exit, and takes no more tasks
        work()
    errors = [worker.exception() for worker in workers]
    for error in errors:
        if error is not None:
            raise error
    return results
