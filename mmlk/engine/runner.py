"""A runner whose runs can be killed at any time and resumed with the same result as without the interruption."""
import logging
import os.path as osp
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, master_only
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.hooks import Hook
from mmengine.logging import MMLogger, print_log
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner, find_latest_checkpoint

from mmlk.registry import RUNNERS
from mmlk.weights import WeightsError, load
from mmlk.weights.loading import compare_weights

from .checkpoints import forget_program
from .network import network_of
from .repeatable import GradientsHook, SeedHook, seed_samples
from .resuming import CheckpointError, check_state, find_resumable, replacing, safe_hook, verify


@RUNNERS.register_module()
class ResumableRunner(Runner):
    """mmengine's runner with atomic checkpoints. A resumed run repeats what an uninterrupted run would have done.

    - Checkpoints are written under a temporary name and then renamed. mmengine's ``CheckpointHook`` in a config is
      replaced with :class:`mmlk.engine.CheckpointHook`.
    - ``resume`` checks the whole checkpoint and that it fits the model before any long work. Without a path it takes
      the newest intact checkpoint. With ``resume='auto'``, a run without a checkpoint starts from the beginning, from
      ``load_from`` if that is given.
    - ``load_from`` is loaded by :func:`mmlk.weights.load`. If a parameter or a buffer is not filled, the run ends
      before any long work. Layers of heads that are for another number of classes are excepted.
    - Each step and each sample has a random seed that depends on its number (:mod:`mmlk.engine.repeatable`). On a CPU,
      with a seed in ``randomness``, a resumed run ends with weights that are equal, bit for bit, to those of an
      uninterrupted run. On a GPU this needs ``randomness=dict(seed=..., deterministic=True)``.
    - Accumulated gradients that no optimizer step has used yet are saved in the checkpoint.

    These are not repeated exactly: transforms that keep images for later samples (cached mosaics), transforms with a
    random generator of their own (albumentations), and torch's ``RandomSampler`` in an iteration-based loop.

    Raises:
        CheckpointError: In ``train``: a checkpoint cannot be written, or training cannot resume from it.
        WeightsError: In ``train``: ``load_from`` does not fill the model.
    """

    _seed_given: Optional[bool] = None

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Builds mmengine's logger. Messages of hundreds of lines (the config, the list of hooks, the options of each
        parameter) are written to the log file only, not to the console."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler) and _not_for_the_console not in handler.filters:
                handler.addFilter(_not_for_the_console)
        return logger

    def dump_config(self) -> None:
        """Writes the config to the work directory and logs its path."""
        super().dump_config()
        name = osp.basename(self.cfg.filename) if self.cfg.filename is not None else f'{self.timestamp}.py'
        self.logger.info(f'the whole config is in {osp.join(self.work_dir, name)}')

    def register_hook(self, hook: Union[Hook, Dict], priority: Optional[Union[str, int]] = None) -> None:
        """Registers a hook. mmengine's checkpoint hook is replaced with that of mmlk."""
        super().register_hook(safe_hook(hook, self.cfg.get('default_scope')), priority)

    def register_hooks(self, *args, **kwargs) -> None:
        """Registers the hooks of the config, :class:`SeedHook` and :class:`GradientsHook`."""
        super().register_hooks(*args, **kwargs)
        self.register_hook(SeedHook())
        self.register_hook(GradientsHook())

    def set_randomness(self, seed: Optional[int], diff_rank_seed: bool = False, deterministic: bool = False) -> None:
        """Sets the random seed as mmengine does. If the config sets a seed, deterministic algorithms are used on a CPU,
        and mmlk's operator chooses its backends without timing them."""
        super().set_randomness(seed, diff_rank_seed, deterministic)
        if self._seed_given is None:
            self._seed_given = seed is not None
        if self._seed_given and not deterministic and get_device() == 'cpu':
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that takes time

    def train(self) -> torch.nn.Module:
        """Trains. First finds the checkpoint to resume from, or checks that ``load_from`` fits the model.

        Returns:
            The trained model.
        """
        if self._resume:
            self._choose_checkpoint()
        if not self._resume and self._load_from is not None:
            compare_weights(self.model, self._load_from, other_classes=True)
        return super().train()

    def build_train_loop(self, loop: Union[BaseLoop, Dict]) -> BaseLoop:
        """Builds the training loop, with a data loader in which each sample has its own seed."""
        if isinstance(self._train_dataloader, dict) and isinstance(loop, dict):
            apart = self._randomness_cfg.get('diff_rank_seed', False)
            seed = self.seed - self.rank if apart else self.seed  # the seed that is the same on all ranks
            loader = self.build_dataloader(self._train_dataloader, seed=seed)
            if not seed_samples(loader, seed, self.rank, self._epoch_of_run):
                print_log('samples cannot be seeded one by one with this dataset and sampler: after --resume they will '
                          'not be those of an uninterrupted run', logger='current', level=logging.WARNING)
            self._train_dataloader = loader
        return super().build_train_loop(loop)

    def _maybe_compile(self, target: str) -> None:
        """Compiles as mmengine does, but not the optimizer step, which is slow and fails for Adam in torch 2.12."""
        if target == 'train_step' and self.cfg.get('compile'):
            self.optim_wrapper.update_params = torch.compiler.disable(self.optim_wrapper.update_params)
        super()._maybe_compile(target)

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        """Loads a checkpoint. When training starts from it, it must fill the model; otherwise, as in mmengine, weights
        that do not fit cause a warning. The text of a config inside the checkpoint is removed, because mmengine's
        ``resume`` would execute it.

        Returns:
            The contents of the checkpoint.
        """
        if self._resume or not isinstance(self._train_loop, BaseLoop):
            checkpoint = super().load_checkpoint(filename, *args, **kwargs)
            forget_program(checkpoint)
            return checkpoint
        load(self.model, filename, other_classes=True)
        checkpoint = dict(state_dict=network_of(self.model).state_dict())
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        self._has_loaded = True
        return checkpoint

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Resumes as mmengine does. Within an epoch, training continues at the batch after the last one."""
        try:
            super().resume(filename, *args, **kwargs)
        except ValueError as error:
            if 'parameter group' not in str(error):
                raise
            raise CheckpointError(f'{filename} does not fit the optimizer of this config ({error}). Resume with the '
                                  'config of its run; to start from its weights, set load_from') from error
        loop = self.train_loop
        if isinstance(loop, EpochBasedTrainLoop) and hasattr(loop.dataloader.batch_sampler, 'seen'):
            loop.dataloader.batch_sampler.seen = loop.iter - loop.epoch * len(loop.dataloader)

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, file_client_args: Optional[dict] = None, *,
                        backend_args: Optional[dict] = None, **kwargs) -> None:
        """Saves a checkpoint as mmengine does. On the local disk the file is replaced atomically."""
        local = isinstance(get_file_backend(out_dir, backend_args=backend_args), LocalBackend)
        if file_client_args is not None or not local:
            super().save_checkpoint(out_dir, filename, file_client_args, backend_args=backend_args, **kwargs)
            return
        with replacing(osp.join(out_dir, filename)) as temporary:
            super().save_checkpoint(out_dir, osp.basename(temporary), backend_args=backend_args, **kwargs)

    def _epoch_of_run(self) -> int:
        return self.epoch + 1 if isinstance(self._train_loop, EpochBasedTrainLoop) else 0

    def _choose_checkpoint(self) -> None:
        """Finds and checks the checkpoint to resume from, and takes over its seed before anything random is built."""
        found: List[Any] = [None, None, None]  # path, seed, error message
        if self.rank == 0:
            try:
                found[:2] = self._find_checkpoint()
            except (CheckpointError, WeightsError) as error:
                found[2] = str(error)
        broadcast_object_list(found)
        path, seed, problem = found
        if problem:
            raise CheckpointError(problem)
        if path is not None:
            self._load_from = path
        elif self._resume == 'auto':
            print_log(f'no checkpoint to resume from in {self.work_dir}: the run starts', logger='current')
            self._resume = False
        if seed is not None and seed != self._randomness_cfg.get('seed'):
            if self._seed_given:
                print_log(f'the seed of the run to resume, {seed}, is taken, not {self._randomness_cfg["seed"]} of the '
                          'config', logger='current', level=logging.WARNING)
            self._randomness_cfg.update(seed=seed)
            self.set_randomness(**self._randomness_cfg)

    def _find_checkpoint(self) -> Tuple[Optional[str], Optional[int]]:
        """Returns the path of the checkpoint to resume from, or None, and its seed. The seed is None if the checkpoint
        is not on the local disk, because it is not read then."""
        model = network_of(self.model)
        path = self._load_from
        if path is None or self._resume == 'auto':
            hook = next((hook for hook in self.hooks if isinstance(hook, _CheckpointHook)), None)
            folder, template = self.work_dir, 'iter_{}.pth'
            if hook is not None:
                template = hook.filename_tmpl
                if hook.out_dir is not None:
                    folder = osp.join(str(hook.out_dir), osp.basename(osp.normpath(self.work_dir)))
            if '://' in folder:
                return find_latest_checkpoint(self.work_dir), None
            path = find_resumable(self.work_dir, folder, template, model)
            if path is None:
                return None, None
        elif '://' in path:
            return None, None
        checkpoint = verify(path, model)
        check_state(path, checkpoint, self)
        return path, checkpoint['meta'].get('seed')


def _not_for_the_console(record: logging.LogRecord) -> bool:
    long = ('Config:\n', 'Hooks will be executed in the following order:', 'paramwise_options -- ')
    return not str(record.msg).startswith(long)
