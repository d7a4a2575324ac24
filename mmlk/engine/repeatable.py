"""Random seeds for each step and each sample, so that a resumed run draws the same random numbers.

mmengine seeds the process once, when a run starts, and each worker of a data loader once, when the worker starts. A
resumed run therefore draws other random numbers than an uninterrupted one, also because workers load samples ahead of
time. Here, each training step and each sample (before it enters the dataset's pipeline) gets its own seed. numpy's
``SeedSequence`` computes it from the run's seed and the number of the step or sample. The result for a sample depends
neither on the number of workers nor on where the run was interrupted, and no generator state has to be saved.
"""
import itertools
import random
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

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
_STEP, _EPOCH, _SAMPLE = range(3)  # independent streams of random numbers


def seed_all(seed: int, *place: int) -> None:
    """Seeds the generators of Python, numpy and torch (on all devices).

    Args:
        seed: The seed of the run.
        place: Numbers that identify the step or sample, such as a stream and an index.
    """
    low, high = np.random.SeedSequence(seed, spawn_key=place).generate_state(2).tolist()
    random.seed(low | high << 32)
    np.random.seed([low, high])
    torch.manual_seed(low | high << 32)


class SeedHook(Hook):
    """Seeds each training step by its number, and the start of each epoch by the number of the epoch."""

    priority = 'HIGHEST'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds the random numbers that the data loader and the sampler draw when they start."""
        seed_all(runner.seed, _EPOCH, runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seeds the random numbers of the model: dropout, stochastic depth, sampled proposals."""
        seed_all(runner.seed, _STEP, runner.iter)


def _wrappers(runner: Runner) -> List[OptimWrapper]:
    wrapper = runner.optim_wrapper
    return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def _is_between(runner: Runner) -> bool:
    """Returns whether there are accumulated gradients that no optimizer step has used yet."""
    return any(not wrapper.should_update() for wrapper in _wrappers(runner))


def _trained(runner: Runner) -> Dict[str, nn.Parameter]:
    named = network_of(runner.model).named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad}


@torch.no_grad()
def average_gradients(runner: Runner) -> None:
    """Replaces the accumulated gradients of each process with their mean over all processes, in-place.

    Does nothing if no gradients are waiting for an optimizer step. The next update uses the mean in any case. After
    this call the gradients of rank 0, which are saved in the checkpoint, are those of all processes.
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
    """Saves accumulated gradients that no optimizer step has used yet in checkpoints, and restores them on resume."""

    _held: Optional[Dict[str, Tensor]] = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Saves the gradients and ``accumulative_counts``, if the checkpoint holds the optimizer's state."""
        steps = max(wrapper._accumulative_counts for wrapper in _wrappers(runner))
        if steps > 1 and 'optimizer' in checkpoint:
            values = {name: parameter.grad.cpu() for name, parameter in _trained(runner).items()
                      if parameter.grad is not None}
            checkpoint[GRADIENTS] = dict(accumulative_counts=steps, values=values if _is_between(runner) else {})

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Reads the gradients from the checkpoint."""
        self._held = checkpoint.get(GRADIENTS, {}).get('values')

    def before_train(self, runner: Runner) -> None:
        """Sets the ``grad`` of the parameters, to which the next step adds."""
        parameters = _trained(runner)
        for name, value in (self._held or {}).items():
            parameters[name].grad = value.to(parameters[name], copy=True)
        self._held = None


class _Index(int):
    """An index of a dataset. Its attribute ``place`` is (epoch, number of the sample within it)."""
    place: Tuple[int, int]


class _SeededItems:
    """A function that returns the items of a batch and seeds the generators before each item."""

    def __init__(self, dataset: Dataset, seed: int, rank: int):
        self.dataset, self.seed, self.rank = dataset, seed, rank

    def __call__(self, indices: List[_Index]) -> list:
        items = []
        for index in indices:
            seed_all(self.seed, _SAMPLE, self.rank, *index.place)
            items.append(self.dataset[int(index)])
        return items


def _number(sampler: Sampler, epoch: Callable[[], int]) -> None:
    """Makes a sampler yield numbered indices. They count from the start of the epoch or, without epochs, of the run."""
    kind, yielded = type(sampler), 0

    class Numbered(kind):

        def __iter__(self) -> Iterator[_Index]:
            nonlocal yielded
            current = epoch()
            if current:
                yielded = 0
            for index in super().__iter__():
                numbered = _Index(index)
                numbered.place = current, yielded
                yielded += 1
                yield numbered

    def skip(self, num_samples: int) -> None:
        """mmengine calls this on resume, with the absolute number of samples, if the sampler has such a method."""
        nonlocal yielded
        kind.skip(self, num_samples)
        yielded = num_samples

    if hasattr(kind, 'skip'):
        Numbered.skip = skip
    sampler.__class__ = Numbered


def _start_late(batch_sampler: Sampler) -> None:
    """Makes a batch sampler skip, in its next pass only, the first ``seen`` batches."""

    class StartingLate(type(batch_sampler)):
        seen = 0

        def __iter__(self) -> Iterator[List[int]]:
            seen, self.seen = self.seen, 0
            yield from itertools.islice(super().__iter__(), seen, None)

    batch_sampler.__class__ = StartingLate


def seed_samples(loader: DataLoader, seed: int, rank: int, epoch: Callable[[], int]) -> bool:
    """Makes a data loader seed the random generators before each sample. Changes the loader in-place.

    Args:
        loader: A data loader that has not been iterated yet, with any number of workers, persistent or not. The classes
            of its sampler and batch sampler are replaced with subclasses, and its dataset gets the method
            ``__getitems__``, which torch calls for whole batches.
        seed: The seed of the run.
        rank: The rank of this process. Each rank uses different seeds.
        epoch: A function that is called at the start of each pass. It returns the epoch, from 1, or 0 if the training
            loop has no epochs.

    Returns:
        False if the samples cannot be seeded: the dataset is an iterable one, or the batch sampler has no ``sampler``.
    """
    sampler = getattr(loader.batch_sampler, 'sampler', None)
    if isinstance(loader.dataset, IterableDataset) or not isinstance(sampler, Sampler):
        return False
    _number(sampler, epoch)
    _start_late(loader.batch_sampler)
    loader.dataset.__getitems__ = _SeededItems(loader.dataset, seed, rank)
    return True
