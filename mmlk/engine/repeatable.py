"""Random numbers that follow from the seed and the place in the run, so that there is no state to save.

mmengine seeds once, when a run starts, and each worker of a data loader once, when the worker starts. A run that goes
on from a checkpoint then draws other numbers than one that was never stopped, the more so as workers fetch ahead. Here
every training step, and every sample on its way through the dataset's pipeline, begins with a seed of its own, made of
the run's seed and the step's or the sample's number by numpy's ``SeedSequence``. What a sample becomes depends neither
on the number of workers nor on where the run was stopped.
"""
import itertools
import random
from typing import Any, Callable, Dict, Iterator, List, Optional

import numpy as np
import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from .network import network_of

GRADIENTS = 'gradients'  # key of a checkpoint
_STEP, _EPOCH, _SAMPLE = range(3)  # streams of random numbers that never meet


def seed_all(seed: int, *place: int) -> None:
    """Seed Python, numpy and torch, on every device, for one place in the run."""
    low, high = np.random.SeedSequence(seed, spawn_key=place).generate_state(2).tolist()
    random.seed(low | high << 32)
    np.random.seed([low, high])
    torch.manual_seed(low | high << 32)


class SeedHook(Hook):
    """Seed each training step by its number, and what is drawn at the start of an epoch by the epoch's."""

    priority = 'HIGHEST'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed what a data loader and a sampler draw when they start."""
        seed_all(runner.seed, _EPOCH, runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed what the model draws: dropout, stochastic depth, sampled proposals."""
        seed_all(runner.seed, _STEP, runner.iter)


def _wrappers(runner: Runner) -> List[OptimWrapper]:
    wrapper = runner.optim_wrapper
    return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def _is_between(runner: Runner) -> bool:
    """Whether gradients are accumulated that the last step has not used."""
    return any(not wrapper.should_update() for wrapper in _wrappers(runner))


def _trained(runner: Runner) -> Dict[str, nn.Parameter]:
    named = network_of(runner.model).named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad}


@torch.no_grad()
def average_gradients(runner: Runner) -> None:
    """Give each process the mean of all processes' gradients, if they are accumulated and not yet used.

    The update has their mean in any case. Now the first process's, which is what a checkpoint holds, are everyone's.
    """
    if get_world_size() == 1 or not _is_between(runner):
        return
    parameters = list(_trained(runner).values())
    known = torch.tensor([parameter.grad is not None for parameter in parameters], device=parameters[0].device).int()
    all_reduce(known, 'max')
    for parameter, anywhere in zip(parameters, known.tolist()):
        if anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            all_reduce(parameter.grad, 'mean')


class GradientsHook(Hook):
    """Keep in checkpoints the gradients that are accumulated and not yet used, and go on from them."""

    _held: Optional[Dict[str, Tensor]] = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put them into a checkpoint that training can go on from, with the number of steps of an update."""
        steps = max(wrapper._accumulative_counts for wrapper in _wrappers(runner))
        if steps > 1 and 'optimizer' in checkpoint:
            values = {name: parameter.grad.cpu() for name, parameter in _trained(runner).items()
                      if parameter.grad is not None}
            checkpoint[GRADIENTS] = dict(accumulative_counts=steps, values=values if _is_between(runner) else {})

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take them out of it."""
        self._held = checkpoint.get(GRADIENTS, {}).get('values')

    def before_train(self, runner: Runner) -> None:
        """Put them where the next step adds to them."""
        parameters = _trained(runner)
        for name, value in (self._held or {}).items():
            parameters[name].grad = value.to(parameters[name], copy=True)
        self._held = None


class _Index(int):
    """An index of a dataset that knows which sample of the run it is: (epoch, number)."""


class _SeededItems:
    """The items of a batch, each from a seed of its own."""

    def __init__(self, dataset: Dataset, seed: int, rank: int):
        self.dataset, self.seed, self.rank = dataset, seed, rank

    def __call__(self, indices: List[_Index]) -> list:
        items = []
        for index in indices:
            seed_all(self.seed, _SAMPLE, self.rank, *index.place)
            items.append(self.dataset[int(index)])
        return items


def _number(sampler: Sampler, epoch: Callable[[], int]) -> None:
    """Make a sampler number what it yields, from the start of an epoch or, without epochs, of the run."""
    kind, yielded = type(sampler), 0

    class Numbered(kind):

        def __iter__(self) -> Iterator[_Index]:
            nonlocal yielded
            current = epoch()
            if current:
                yielded = 0
            for index in super().__iter__():
                index = _Index(index)
                index.place = current, yielded
                yielded += 1
                yield index

    def skip(self, num_samples: int) -> None:
        """mmengine fast-forwards a sampler that can do so to an absolute place, when a run goes on."""
        nonlocal yielded
        kind.skip(self, num_samples)
        yielded = num_samples

    if hasattr(kind, 'skip'):
        Numbered.skip = skip
    sampler.__class__ = Numbered


def _start_late(batch_sampler: Sampler) -> None:
    """Make a batch sampler leave out, the next time, the ``seen`` batches of an interrupted epoch."""

    class StartingLate(type(batch_sampler)):
        seen = 0

        def __iter__(self) -> Iterator[List[int]]:
            seen, self.seen = self.seen, 0
            yield from itertools.islice(super().__iter__(), seen, None)

    batch_sampler.__class__ = StartingLate


def seed_samples(loader: DataLoader, seed: int, rank: int, epoch: Callable[[], int]) -> bool:
    """Give every sample of a data loader that is not yet iterated a seed of its own.

    Args:
        loader: Any of a map-style dataset, with any number of workers, persistent or not. The classes of its sampler
            and batch sampler are extended, and its dataset is given a ``__getitems__``, which torch asks for batches.
        seed: The run's.
        rank: Of this process: the others' samples get other seeds.
        epoch: Asked at the start of each pass: the epoch from 1 on, or 0 when the loop knows no epochs.

    Returns:
        Whether it could be done; not for an iterable dataset, or a batch sampler without a ``sampler``.
    """
    sampler = getattr(loader.batch_sampler, 'sampler', None)
    if isinstance(loader.dataset, IterableDataset) or not isinstance(sampler, Sampler):
        return False
    _number(sampler, epoch)
    _start_late(loader.batch_sampler)
    loader.dataset.__getitems__ = _SeededItems(loader.dataset, seed, rank)
    return True
