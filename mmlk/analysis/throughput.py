"""Images per second at the batch that is best within a bound on memory, as papers publish throughput.

What a call computes is as in :mod:`mmlk.analysis.latency`. Batches of 1, 2, 4 and so on are tried, until two in a row
are not faster than the best before them, or memory ends: a batch needs more than the bound, or the device has none
left. Both are results, and are told. Memory of a batch is the weights, the images, and what a call holds at most beyond
them. On a CPU a batch is not tried if it would exceed the bound by what the last two needed, because a system without
memory may end the process.

At last all networks are timed in turns, each at its best batch; the figure is the median of these turns.
"""
import math
import re
import statistics
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import nn

from mmlk._text import readable_bytes
from mmlk.analysis.latency import Job, LatencyNetwork, RuntimeBuilder, Variant, jobs
from mmlk.ops import benchmark

SEARCH_TURNS = 3  # how often a batch is timed while the best one is looked for
PATIENCE = 2  # batches in a row that are not faster, after which the search ends


class Trial(NamedTuple):
    """One batch that was tried.

    Args:
        batch: Number of images.
        seconds: Median time of a call; NaN if there is none.
        memory: In bytes; None if the call failed.
        failed: Why this batch cannot be had; None if it can.
    """
    batch: int
    seconds: float = math.nan
    memory: Optional[int] = None
    failed: Optional[str] = None

    @property
    def throughput(self) -> float:
        """Images per second."""
        return self.batch / self.seconds


@dataclass
class ThroughputRow:
    """What was found of one network in one variant and mode.

    Args:
        name: Of the network.
        variant: Of the network, as text.
        mode: 'inference' or 'training'.
        size: Height and width of the image in pixels.
        dtype: In which it computes.
        trials: Batches in the order in which they were tried.
        ended: Why no larger batch was tried.
        seconds: The time of a call of the best batch, in each turn of the last comparison.
    """
    name: str
    variant: str
    mode: str
    size: Tuple[int, int]
    dtype: str
    trials: List[Trial]
    ended: str
    seconds: List[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f'{self.name} ({self.variant})'

    @property
    def best(self) -> Optional[Trial]:
        """The batch with most images per second in the search; None if none can be had."""
        return max((trial for trial in self.trials if not trial.failed), key=lambda t: t.throughput, default=None)

    @property
    def throughput(self) -> float:
        """Images per second at the best batch."""
        return self.best.batch / statistics.median(self.seconds)

    def to_dict(self) -> dict:
        """For a JSON file."""
        facts = dict(name=self.name, variant=self.variant, mode=self.mode, dtype=self.dtype,
                     shape=dict(width=self.size[1], height=self.size[0]), ended=self.ended,
                     trials=[dict(batch=t.batch, failed=t.failed, memory_bytes=t.memory,
                                  images_per_second=None if math.isnan(t.seconds) else t.throughput)
                             for t in self.trials])
        if self.best is None:
            return dict(facts, failed=self.ended)
        return dict(facts, batch=self.best.batch, memory_bytes=self.best.memory, images_per_second=self.throughput,
                    seconds=self.seconds)


def default_limit(device: torch.device) -> int:
    """Returns the memory of a GPU, or half of what the system has available for a CPU; 8 GiB if it does not tell."""
    if device.type == 'cuda':
        return torch.cuda.get_device_properties(device).total_memory
    try:
        with open('/proc/meminfo') as info:
            return next(int(line.split()[1]) * 1024 for line in info if line.startswith('MemAvailable')) // 2
    except (OSError, StopIteration):
        return 8 * 2**30


def check_variant(variant: Variant, mode: str, device: torch.device) -> None:
    """Raises a ValueError if a variant has no such mode, does not run on the device, or hides its memory."""
    variant.check(mode, device)
    if variant.runtime in ('onnxruntime', 'openvino'):
        raise ValueError(f"variant '{variant}' keeps memory that cannot be measured, so that no bound can be held")


def search(attempt: Callable[[int], Trial], limit: int, predict: bool) -> Tuple[List[Trial], str]:
    """Tries batches of 1, 2, 4 and so on.

    Args:
        attempt: Tries a batch.
        limit: Bytes that a batch may need.
        predict: Whether a batch is left out that would need more, judged by the two before it.

    Returns:
        The trials, and why the search ended. One that needs more than the limit is marked as failed.
    """
    trials: List[Trial] = []
    slower, best = 0, 0.0
    while True:
        batch = 2**len(trials)
        if predict and len(trials) > 1:
            before, last = (trial.memory for trial in trials[-2:])
            expected = last + 2 * max(0, last - before)  # twice the step, because the batch doubles
            if expected > limit:
                return trials, (f'a batch of {batch} would need about {readable_bytes(expected)} of '
                                f'{readable_bytes(limit)}')
        trial = attempt(batch)
        if not trial.failed and trial.memory > limit:
            trial = trial._replace(failed=f'needs {readable_bytes(trial.memory)} of {readable_bytes(limit)}')
        trials.append(trial)
        if trial.failed:
            return trials, f'a batch of {batch}: {trial.failed}'
        slower = 0 if trial.throughput > best else slower + 1
        best = max(best, trial.throughput)
        if slower == PATIENCE:
            return trials, f'batches of {batch // 2} and {batch} are not faster'


def why_failed(error: BaseException) -> str:
    """Returns 'out of memory', or the first line of another error."""
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or re.search("out of memory|can't allocate", text):
        return 'out of memory'
    return f'{type(error).__name__}: {text}'.split('\n')[0][:300]


def attempt_batch(make: Callable[[int], Job], image: int, device: torch.device, warmup: int, batch: int) -> Trial:
    """Runs a batch a few times. No error is raised: one that occurs is the trial's.

    Args:
        make: Returns the job of a batch.
        image: Bytes of one image.
        device: Where the job runs.
        warmup: Calls before it is timed, at least one.
        batch: Number of images.
    """
    try:
        job = make(batch)
        for _ in range(max(1, warmup)):
            job.call()
        peak = benchmark.peak_memory(job.call, device)
        if peak is None:
            raise ValueError('this system does not tell how much memory a call needs, so that no bound can be held')
        seconds = benchmark.turns({0: job.call}, device, most=SEARCH_TURNS, least=SEARCH_TURNS)[0]
        weights = sum(tensor.nbytes for tensor in (*job.module.parameters(), *job.module.buffers()))
        return Trial(batch, statistics.median(seconds), weights + batch * image + peak)
    except Exception as error:  # out of memory, a compiler's, or of an operator that lacks the type
        failed = why_failed(error)
    job = None  # the error, which held the frames of the call and thus its tensors, is gone too
    if device.type == 'cuda':
        torch.cuda.empty_cache()
    return Trial(batch, failed=failed)


def dtype_of(variant: Variant, device: torch.device) -> str:
    """Returns the name of the type in which convolutions of a variant are computed."""
    if variant.bf16 or variant.amp:
        return 'float16' if device.type == 'cuda' and not variant.bf16 else 'bfloat16'
    return 'float32 (TF32)' if device.type == 'cuda' and torch.backends.cudnn.allow_tf32 else 'float32'


def _job(network: LatencyNetwork, module: nn.Module, variants: Sequence[Variant], variant: Variant, mode: str,
         size: Tuple[int, int], device: torch.device, runtimes: Mapping[str, RuntimeBuilder], batch: int) -> Job:
    """The job of one of several variants; what it computes depends on the others, see :func:`latency.jobs`."""
    every = jobs(network, module, variants, mode, size, batch, device, runtimes)
    return next(job for job in every if job.variant == variant)


def measure_throughput(networks: Sequence[LatencyNetwork], modules: Sequence[nn.Module], variants: Sequence[Variant],
                       mode: str, size: Tuple[int, int], device: torch.device, limit: int, turns: int = 10,
                       warmup: int = 4, tick: Callable[[str], object] = lambda text: None,
                       runtimes: Mapping[str, RuntimeBuilder] = {}) -> List[ThroughputRow]:
    """Finds the best batch of each network and variant, and compares them.

    Args:
        networks: What to measure.
        modules: What their ``build`` gave, on the device. What changes of them is said of ``measure_latency``.
        variants: As :meth:`Variant.parse` gives them, but none of ONNX Runtime or OpenVINO.
        mode: 'inference' or 'training'.
        size: Height and width of the image in pixels.
        device: A CPU or GPU.
        limit: Bytes that weights, images and a call may need together, of each network alone.
        turns: How often each is timed at last.
        warmup: Untimed calls of each batch, at least one.
        tick: Called before each batch that is tried, with what comes.
        runtimes: Those of the variants, by name.

    Returns:
        A row for each network and variant. If no batch can be had, ``best`` of the row is None, and ``ended`` says why.

    Raises:
        ValueError: A variant does not have the mode, does not run on the device, or is of a runtime whose memory is not
            known. Nothing has been measured.
    """
    for variant in variants:
        check_variant(variant, mode, device)
    rows: List[ThroughputRow] = []
    calls: Dict[int, Callable[[], object]] = {}
    for network, module in zip(networks, modules):
        image = 4 * network.in_channels * size[0] * size[1]
        for variant in [job.variant for job in jobs(network, module, variants, mode, size, 1, device, runtimes)]:
            make = partial(_job, network, module, variants, variant, mode, size, device, runtimes)

            def attempt(batch: int) -> Trial:
                tick(f'{mode}: {network.name} ({variant}), a batch of {batch}')
                return attempt_batch(make, image, device, warmup, batch)

            trials, ended = search(attempt, limit, predict=device.type == 'cpu')
            row = ThroughputRow(network.name, str(variant), mode, size, dtype_of(variant, device), trials, ended)
            if row.best:
                calls[len(rows)] = make(row.best.batch).call
            rows.append(row)
    for index, seconds in benchmark.turns(calls, device, most=turns, least=turns).items():
        rows[index].seconds = seconds
    return rows
