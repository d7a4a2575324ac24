"""Hooks of mmengine's runner."""
import logging
import time
from typing import Any, Optional, Set

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmlk.datasets.samples import fault, leaves
from mmlk.datasets.settings import use_of
from mmlk.engine.heads import classes_of
from mmlk.engine.loading import DataError
from mmlk.engine.network import network_of
from mmlk.engine.resuming import CheckpointError
from mmlk.ops import set_memory_format
from mmlk.ops.backends.workers import BUSY_RATE, involuntary_switches
from mmlk.registry import HOOKS
from mmlk.reparam import merge


@HOOKS.register_module()
class MergeBranchesHook(Hook):
    """Merges the model's parallel branches after its checkpoint is loaded, before testing (``tools/test.py --merge``).

    If the config has an ``EMAHook``, the averaged weights are merged and tested.
    """

    priority = 'VERY_HIGH'

    def before_test(self, runner: Runner) -> None:
        """Merges the model in-place. An ``EMAHook`` runs before the merge and is then removed: later it would swap the
        weights of the merged model with those of its own copy, which still has branches."""
        averaging = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        for hook in averaging:
            hook.before_test_epoch(runner)
        runner._hooks = [hook for hook in runner.hooks if hook not in averaging]
        merge(runner.model, inplace=True)
        print_log('parallel branches merged; testing the merged model', logger='current')


@HOOKS.register_module()
class CheckLabelsHook(Hook):
    """Checks that all labels of a label map are classes of the segmentor, before the loss or the metric is computed.

    Without this check, the loss fails with an assertion on the GPU and an IoU counts the pixels wrongly; neither names
    the file. The tools add this hook to every run of a segmentor.

    If the first label maps contain only one class and the ignored label, as binary masks of 0 and 255 do, the hook logs
    one warning, because such a run ends with an IoU of 0 but without an error.

    Raises:
        DataError: A label map contains a label that is neither a class nor the ignored label. The message names it.
    """

    watched = 50  #: Number of iterations of training or testing after which the warning is logged.

    def before_run(self, runner: Runner) -> None:
        """Reads the number of classes from the decode head (the last one of a cascade), not from auxiliary heads."""
        head = getattr(network_of(runner.model), 'decode_head', None)
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        self.classes = classes_of(head) if hasattr(head, 'num_classes') else None
        self.ignored = getattr(head, 'ignore_index', 255)
        self._iterations = 0
        self._held: Set[int] = set()
        self._ignores = False

    def after_run(self, runner: Runner) -> None:
        """Logs the warning if the run had fewer iterations than ``watched``."""
        if self._iterations < self.watched:
            self._warn_of_one_class()

    def _before_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                     mode: str = 'train') -> None:
        if self.classes is None or not isinstance(data_batch, dict):
            return
        for sample in data_batch.get('data_samples') or ():
            labels = getattr(sample, 'gt_sem_seg', None)
            if labels is not None:
                self._check(labels.data, sample.metainfo)
                if mode != 'val':
                    self._note(labels.data)
        if mode != 'val':
            self._iterations += 1
            if self._iterations == self.watched:
                self._warn_of_one_class()

    def _note(self, labels: Tensor) -> None:
        """Collects the labels that occur, until there are two."""
        if len(self._held) < 2 and self._iterations < self.watched:
            counted = labels[labels != self.ignored]
            self._ignores |= counted.numel() < labels.numel()
            self._held.update(map(int, counted.aminmax()) if counted.numel() else ())

    def _warn_of_one_class(self) -> None:
        if self.classes is None or self.classes < 2 or len(self._held) > 1 or not self._ignores:
            return
        only = f'label {min(self._held)} and ' if self._held else ''
        print_log(f'the label maps of the first {self._iterations} iterations hold {only}the ignored label '
                  f'{self.ignored} alone, of {self.classes} classes: nothing can be learnt or measured of the others. '
                  f'Label maps must hold the numbers of classes, 0 to {self.classes - 1}; in masks of 0 and 255, save '
                  '255 as 1. Is reduce_zero_label right? tools/check_data.py counts the labels of all files',
                  logger='current', level=logging.WARNING)

    def _check(self, labels: Tensor, metainfo: dict) -> None:
        name = metainfo.get('seg_map_path') or f"the label map of {metainfo.get('img_path', 'an image')}"
        if labels.ndim != 3 or labels.shape[0] != 1:
            raise DataError(f'{name} is of shape {tuple(labels.shape)}; expected one channel, of label ids')
        wrong = ((labels < 0) | (labels >= self.classes)) & (labels != self.ignored)
        if wrong.any():
            found = ', '.join(map(str, labels[wrong].unique().tolist()[:8]))
            raise DataError(f'{name} holds label {found} after loading; the segmentor has classes 0 to '
                            f'{self.classes - 1}. tools/check_data.py lists all such files; is reduce_zero_label '
                            'right?')


@HOOKS.register_module()
class CheckSamplesHook(Hook):
    """Runs one sample of each dataset through its pipeline when a run begins.

    An error that would occur only at the first validation is raised before the training. The tools add this hook to
    every run.
    """

    def before_train(self, runner: Runner) -> None:
        """Checks the training set and the validation set.

        Raises:
            DataError: The pipeline fails, or its samples cannot be evaluated.
        """
        self._check(runner, 'train', runner.train_dataloader)
        if runner.val_loop is not None:
            self._check(runner, 'val', runner.val_dataloader)

    def before_test(self, runner: Runner) -> None:
        """Checks the test set.

        Raises:
            DataError: The pipeline fails, or its samples cannot be evaluated.
        """
        self._check(runner, 'test', runner.test_dataloader)

    @staticmethod
    def _check(runner: Runner, split: str, loader: DataLoader) -> None:
        for dataset in leaves(loader.dataset):
            why = fault(dataset, use_of(runner.cfg, split))
            if why:
                raise DataError(f'{split}_dataloader.dataset: {why}')


@HOOKS.register_module()
class BusyMachineHook(Hook):
    """Logs one warning if other processes take the cores of the machine from a run on the CPU.

    At the end of each operator, all threads of PyTorch wait for the slowest one. If a thread has to share its core,
    every operator takes as long as on that core, and the waiting threads use their own cores in vain. On two cores, the
    demo of SegFormer's head took 98 ms for an iteration with two threads and 119 ms with one. Beside one busy process
    it took 410 and 112 ms, and beside two of them about 900 and 190 ms. The number of threads is not changed by itself,
    because the results of a run with a seed would then depend on what else runs.

    The tools add this hook to every run.
    """

    window = 10.0  #: Seconds over which the context switches are counted.

    def before_run(self, runner: Runner) -> None:
        """Begins to count at the first iteration, with the run's number of threads."""
        on_cpu = all(parameter.device.type == 'cpu' for parameter in runner.model.parameters())
        self._threads = torch.get_num_threads() if on_cpu else 1  # one thread does not wait for another
        self._begun: Optional[float] = None
        self._switches = 0

    def _after_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self._threads < 2:
            return
        now, switches = time.monotonic(), involuntary_switches()
        if self._begun is not None:
            seconds = now - self._begun
            if seconds < self.window:
                return
            rate = (switches - self._switches) / seconds
            if rate >= BUSY_RATE / 2 * self._threads:  # that rate is of two threads
                self._warn(rate)
        self._begun, self._switches = now, switches

    def _warn(self, rate: float) -> None:
        print_log(f"other processes, or this run's own data loaders, use the cores of this machine: PyTorch's "
                  f'{self._threads} threads lost theirs {rate:.0f} times a second, and each operator waits for the '
                  'slowest thread. With fewer threads the run may be several times as fast: set the environment '
                  f'variable OMP_NUM_THREADS to {max(1, self._threads // 2)}, for example. A training that was stopped '
                  'is continued with --resume', logger='current', level=logging.WARNING)
        self._threads = 1


@HOOKS.register_module()
class BatchSizeHook(Hook):
    """Checks that a run is resumed with the same total batch size. The number of processes may differ.

    The schedule counts iterations, and the checkpoint holds the learning rate; both depend on the batch size. The hook
    saves it as ``meta['batch_size']`` of each checkpoint: the images per iteration of all processes together. A
    checkpoint without this value is accepted.
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Saves the batch size in the checkpoint."""
        checkpoint['meta']['batch_size'] = self._batch_size(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compares the batch sizes if the run is resumed.

        Raises:
            CheckpointError: The batch size of the checkpoint is different.
        """
        began = checkpoint.get('meta', {}).get('batch_size')
        if not runner.cfg.get('resume') or began in (None, self._batch_size(runner)):
            return
        raise CheckpointError(
            f'the checkpoint was trained with {began} images per iteration, and this run has '
            f'{self._batch_size(runner)} ({runner.world_size} processes): the schedule and the learning rate would not '
            f'fit. Resume with {began} (train_dataloader.batch_size times the number of processes), or begin a new '
            'schedule from its weights with load_from instead')

    @staticmethod
    def _batch_size(runner: Runner) -> int:
        return runner.world_size * runner.train_dataloader.batch_sampler.batch_size


@HOOKS.register_module()
class MemoryFormatHook(Hook):
    """Sets the memory format in which the model's backbone runs. The backbone still returns contiguous feature maps.

    It is meant for backbones of the toolboxes: those of mmlk use the fastest format by themselves. See
    :func:`mmlk.ops.set_memory_format`.

    Args:
        memory_format: ``'channels_last'``, ``'contiguous'``, or ``'fastest'``: the faster of the two for the device and
            for training or inference.

    Raises:
        ValueError: The memory format is unknown, or the model has no backbone.
    """

    def __init__(self, memory_format: str = 'fastest'):
        set_memory_format(nn.Identity(), memory_format)  # an unknown format raises an error before the model is built
        self.memory_format = memory_format

    def before_run(self, runner: Runner) -> None:
        """Sets the memory format of ``model.backbone``."""
        model = network_of(runner.model)
        if not isinstance(getattr(model, 'backbone', None), nn.Module):
            raise ValueError('MemoryFormatHook sets the memory format of model.backbone; '
                             f'{type(model).__name__} has none')
        set_memory_format(model.backbone, self.memory_format)
