"""Measures time and memory of the backends and compares them with PyTorch's own convolution in the same run.

It needs PyTorch only, no OpenMMLab package. All times are medians. The calls that are compared are timed in turns, so
that changes in the speed of the machine affect all of them equally.
"""
import ctypes
import platform
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import (Callable, ContextManager, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple,
                    TypeVar)

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import TABLE, ConvProblem
from .choice import choose, choose_training, timed
from .depthwise import depthwise_conv2d

Call = Callable[[], object]
Key = TypeVar('Key')
# Seconds of calls after which automatic choice has surely noticed that the machine became busy or idle: it counts for
# 2 seconds while it is busy (mmlk.ops.backends.workers).
SETTLING_SECONDS = 2.5


class Case(NamedTuple):
    """One case: the shape of the input, the size of the square kernel, the dtype, and whether to include backward."""

    batch: int
    channels: int
    height: int
    width: int
    kernel: int
    backward: bool
    dtype: torch.dtype = torch.float32

    @property
    def label(self) -> str:
        """The shapes as text."""
        return f'({self.batch},{self.channels},{self.height},{self.width}) k {self.kernel}'

    @property
    def flops(self) -> int:
        """Operations (two per multiply-add) of the direct method. A backward pass counts as two forward passes."""
        passes = 3 if self.backward else 1
        return passes * 2 * self.batch * self.channels * self.height * self.width * self.kernel**2


    @property
    def bytes(self) -> int:
        """Minimum number of bytes to read and write: two maps per pass. The kernels are small and not counted."""
        return (6 if self.backward else 2) * self.batch * self.channels * self.height * self.width * self.dtype.itemsize

    @property
    def toeplitz_flops(self) -> int:
        """Operations by banded matrices for 16 outputs, the minimum for tensor cores; see :mod:`.backends.triton`."""
        return self.flops * (self.kernel + 15) // self.kernel


@dataclass
class OperatorRow:
    """The measurements of one case.

    Attributes:
        case: The case.
        samples: Seconds of each call, by name: ``'stock'`` for PyTorch, names of backends, ``'chosen'`` for automatic
            choice.
        memory: Peak memory of each call, by name, in bytes beyond what was used before; None if unknown.
        reasons: Why a backend cannot run, by its name.
        chosen: The chosen backends: one for inference; with backward, for forward, gradient of the input and gradient
            of the weight.
    """

    case: Case
    samples: Dict[str, List[float]]
    memory: Dict[str, Optional[int]]
    reasons: Dict[str, str]
    chosen: List[str]

    @property
    def times(self) -> Dict[str, float]:
        """Median seconds by name."""
        return {name: statistics.median(samples) for name, samples in self.samples.items()}

    @property
    def excess(self) -> float:
        """Time of automatic choice divided by that of the fastest backend: the median of the ratios of all rounds."""
        pairs = list(zip(self.samples['chosen'], self.samples[self.best]))
        return statistics.median(chosen / best for chosen, best in pairs)

    @property
    def stock(self) -> float:
        """Median seconds of PyTorch's convolution; on a GPU in the faster memory format."""
        return min(seconds for name, seconds in self.times.items() if name.startswith('stock'))

    @property
    def best(self) -> str:
        """Name of the fastest backend."""
        return min((b.name for b in TABLE if b.name in self.times), key=self.times.__getitem__)


def _inputs(case: Case, device: torch.device) -> Tuple[Tensor, Tensor, Tensor]:
    """Returns random input, weight and gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    shape = case[:4]
    x, grad = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    weight = torch.randn(case.channels, 1, case.kernel, case.kernel, generator=generator) / case.kernel
    x, weight, grad = (t.to(device, case.dtype) for t in (x, weight, grad))
    return x, weight, grad


def _call(case: Case, convolve: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, grad: Tensor) -> Call:
    """Returns a function that runs ``convolve`` once, with its backward pass if the case includes it."""
    if not case.backward:
        def forward() -> object:
            with torch.no_grad():
                return convolve(x, weight)
        return forward
    leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()

    def forward_backward() -> object:
        return torch.autograd.grad(convolve(*leaves), leaves, grad)
    return forward_backward


def calls_of(case: Case, device: torch.device) -> Tuple[ConvProblem, Dict[str, Call], Dict[str, str]]:
    """Returns the problem, the calls to compare by name, and the reasons of backends that cannot run by name."""
    x, weight, grad = _inputs(case, device)
    problem = ConvProblem.of(x, weight)

    def stock(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, padding=case.kernel // 2, groups=case.channels)

    calls, reasons = {'stock': _call(case, stock, x, weight, grad)}, {}
    if device.type == 'cuda':
        last = [t.contiguous(memory_format=torch.channels_last) for t in (x, weight, grad)]
        calls['stock, channels_last'] = _call(case, stock, *last)
    for backend in TABLE:
        ok, reason = backend.can_run(problem)
        if ok:
            calls[backend.name] = _call(
                case, partial(depthwise_conv2d, backend=backend.name), x, weight, grad)
        else:
            reasons[backend.name] = reason
    calls['chosen'] = _call(case, depthwise_conv2d, x, weight, grad)
    return problem, calls, reasons


def _chosen(case: Case, problem: ConvProblem) -> List[str]:
    """Returns the names of the backends that automatic choice uses now; see :class:`OperatorRow`."""
    if not case.backward:
        backend, _ = choose('inference', problem)
        assert backend is not None  # native can run every problem
        return [backend.name]
    methods = choose_training(problem)
    return [(methods.get(step) or methods.get('training') or methods['gradients']).name
            for step in ('forward', 'grad_input', 'grad_weight')]


def turns(calls: Mapping[Key, Call], device: torch.device, budget: float = 3.0, most: int = 15, least: int = 3,
          tick: Callable[[], object] = lambda: None) -> Dict[Key, List[float]]:
    """Times several functions in turns, so that a machine whose speed changes slows all of them alike.

    Each function is called once before the first turn. That call is not counted.

    Args:
        calls: Functions without arguments, by name.
        device: The device that they run on. A GPU is synchronized before and after each call.
        budget: Approximate maximum of the seconds spent on one function. It reduces the number of turns to ``least``
            at most.
        most: Maximum number of turns.
        least: Minimum number of turns. If it is equal to ``most``, every function gets this number.
        tick: Called after each counted call. Its time is not counted.

    Returns:
        The seconds of each function in each of its turns.
    """
    first = {name: timed(call, device) for name, call in calls.items()}  # not counted: says how many fit
    counts = {name: max(least, min(most, int(budget / seconds))) for name, seconds in first.items()}
    samples: Dict[Key, List[float]] = {name: [] for name in calls}
    for turn in range(most):
        for name, call in calls.items():
            if turn < counts[name]:
                if first[name] < 2:  # warm-up: the previous call has filled the CPU caches with other data
                    call()
                samples[name].append(timed(call, device))
                tick()
    return samples


def _resident(field: str) -> int:
    """Returns a field of /proc/self/status in bytes."""
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def peak_memory(call: Call, device: torch.device) -> Optional[int]:
    """Returns the peak memory of a call in bytes, beyond what was used before; None if it cannot be measured."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    try:  # return unused memory to the system, then reset the peak that Linux counts
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        with open('/proc/self/clear_refs', 'w') as reset:
            reset.write('5')
        before = _resident('VmRSS')
        call()
        return max(0, _resident('VmHWM') - before)
    except (OSError, AttributeError):
        return None


def measure(case: Case, device: torch.device, budget: float = 3.0) -> OperatorRow:
    """Measures all backends that can run the case, automatic choice, and PyTorch. ``budget`` as in :func:`turns`."""
    problem, calls, reasons = calls_of(case, device)
    for _ in range(4):  # automatic choice measures in the third call
        calls['chosen']()
    samples = turns(calls, device, budget)
    memory = {name: peak_memory(call, device) for name, call in calls.items()}
    return OperatorRow(case, samples, memory, reasons, _chosen(case, problem))


@contextmanager
def busy_process() -> Iterator[None]:
    """A context manager in which another process keeps one core busy."""
    with subprocess.Popen([sys.executable, '-S', '-c', 'while True: pass']) as process:
        try:
            time.sleep(0.1)  # wait until it runs
            yield
        finally:
            process.kill()


def contention(case: Case, device: torch.device, budget: float = 3.0, rounds: int = 3,
               tick: Callable[[], object] = lambda: None) -> Dict[str, Tuple[float, float]]:
    """Measures PyTorch's convolution and automatic choice on an idle machine, and while another process keeps one core
    busy.

    The two conditions alternate ``rounds`` times. In each of them automatic choice runs first until it has noticed
    whether the machine is busy, as it has in a training.

    Args:
        case: The case.
        device: The device that it runs on.
        budget: As in :func:`turns`, for both conditions together.
        rounds: Number of alternations.
        tick: Called after each condition.

    Returns:
        Median seconds (idle, busy) of ``'stock'`` and ``'chosen'``.
    """
    _, calls, _ = calls_of(case, device)
    calls = {name: calls[name] for name in ('stock', 'chosen')}
    samples: Tuple[Dict[str, List[float]], ...] = ({name: [] for name in calls}, {name: [] for name in calls})
    for _ in range(rounds):
        contexts: Tuple[Callable[[], ContextManager[None]], ...] = (nullcontext, busy_process)
        for context, found in zip(contexts, samples):
            with context():
                began = time.perf_counter()
                while time.perf_counter() - began < SETTLING_SECONDS:
                    calls['chosen']()
                for name, seconds in turns(calls, device, budget / (2 * rounds), most=15, least=2).items():
                    found[name].extend(seconds)
            tick()
    alone, beside = ({name: statistics.median(found[name]) for name in calls} for found in samples)
    return {name: (alone[name], beside[name]) for name in calls}


def machine_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the operations per second of a large square matrix product, as a measure of the machine's peak."""
    size = 8192 if device.type == 'cuda' else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    a @ a
    return 2 * size**3 / min(timed(lambda: a @ a, device) for _ in range(5))


def machine_bandwidth(device: torch.device) -> float:
    """Returns the bytes per second, read and written, of copying a large tensor."""
    a = torch.ones(1 << (28 if device.type == 'cuda' else 26), device=device)
    b = a.clone()
    return 2 * a.numel() * a.element_size() / min(timed(lambda: b.copy_(a), device) for _ in range(5))


def describe(device: torch.device) -> str:
    """Returns a line with the device and the versions of PyTorch and Python."""
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    else:
        name = platform.processor() or platform.machine()
        try:
            with open('/proc/cpuinfo') as info:
                name = next((line.split(':', 1)[1].strip() for line in info if line.startswith('model name')), name)
        except OSError:
            pass
        name = f'{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads'
    return f'{name}; torch {torch.__version__}, Python {platform.python_version()}'


def table(rows: Sequence[OperatorRow], peaks: Dict[torch.dtype, float], bandwidth: Optional[float] = None) -> str:
    """Returns a Markdown table with one line per row: times in ms, with peak memory in MiB in brackets.

    ``against stock`` is the speedup of automatic choice over PyTorch. ``of peak`` may be more than 100 %, because the
    operations of the direct method are counted, and spectral backends need fewer.

    Args:
        rows: The measurements.
        peaks: Operations per second of :func:`machine_peak` by dtype.
        bandwidth: Bytes per second of :func:`machine_bandwidth`. If given, two more columns compare the time with two
            lower bounds: moving all maps once, and the banded matrix products at the peak.
    """
    names = [b.name for b in TABLE if any(b.name in row.times for row in rows)]
    stocks = [name for name in ('stock', 'stock, channels_last') if any(name in row.times for row in rows)]
    head = ['work', 'type', *stocks, *names, 'chosen', 'of', 'against stock', 'chosen / best', 'GFLOP/s', 'of peak',
            'memory against stock'] + (['of memory floor', 'of tensor-core floor'] if bandwidth else [])
    lines = [head, ['---'] * len(head)]
    for row in rows:
        case, chosen = row.case, row.times['chosen']
        rate = case.flops / chosen
        ours, theirs = row.memory['chosen'], row.memory['stock']
        lines.append([
            f"{case.label}, {'forward + backward' if case.backward else 'forward'}", str(case.dtype)[6:],
            *(_cell(row, name) for name in (*stocks, *names, 'chosen')), ' / '.join(row.chosen),
            f'{row.stock / chosen:.1f}x', f'{row.excess:.2f}', f'{rate / 1e9:.0f}',
            f'{100 * rate / peaks[case.dtype]:.0f} %', f'{ours / theirs:.1f}x' if ours and theirs else '',
            *([f'{100 * case.bytes / bandwidth / chosen:.0f} %',
               f'{100 * case.toeplitz_flops / peaks[case.dtype] / chosen:.0f} %'] if bandwidth else [])])
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _cell(row: OperatorRow, name: str) -> str:
    """Returns the milliseconds of a call, with MiB in brackets; empty if it was not measured."""
    if name not in row.times:
        return ''
    milliseconds, memory = row.times[name] * 1e3, row.memory.get(name)
    return (f'{milliseconds:.3g}' if milliseconds < 1000 else f'{milliseconds:.0f}') + (
        '' if memory is None else f' ({memory / 2**20:.0f})')
