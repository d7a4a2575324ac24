"""A runner whose runs may be killed at any moment and go on as if they had not been."""
import logging
import os.path as osp
from typing import Dict, Optional, Tuple, Union

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, master_only
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner

from mmlk.registry import RUNNERS
from mmlk.weights import WeightsError

from .repeatable import SeedHook, seed_samples
from .resuming import CheckpointError, CheckpointHook, find_resumable, replacing, verify


@RUNNERS.register_module()
class ResumableRunner(Runner):
    """mmengine's runner, with checkpoints that are always whole, and the same run whether or not it was stopped.

    - Checkpoints are written under a temporary name and renamed; mmengine's ``CheckpointHook`` in a config stands for
      :class:`mmlk.engine.CheckpointHook`.
    - ``resume`` checks a checkpoint, every byte of it and its fit to the model, before anything long. Without a path it
      takes the newest whole one.
    - Each step and each sample is seeded by its number (:mod:`mmlk.engine.repeatable`), so that on a CPU, with a seed
      in ``randomness``, a run that was stopped ends with the weights of one that was not, bit for bit. A GPU needs
      ``randomness=dict(seed=..., deterministic=True)`` for that.

    Not repeated are: gradients accumulated over several steps since the last update, transforms that keep images for
    later ones or random numbers of their own (cached mosaics, albumentations), and, under an iteration-based loop,
    torch's own ``RandomSampler``.

    Raises:
        CheckpointError: From ``train``: a checkpoint cannot be written, or training cannot go on from it.
    """

    _seed_given: Optional[bool] = None

    def register_hook(self, hook: Union[Hook, Dict], priority: Optional[Union[str, int]] = None) -> None:
        """Take mmlk's checkpoint hook for mmengine's."""
        stock = ('CheckpointHook', 'mmengine.CheckpointHook', _CheckpointHook)
        if isinstance(hook, dict) and hook.get('type') in stock:
            hook = dict(hook, type=CheckpointHook)
        super().register_hook(hook, priority)

    def register_hooks(self, *args, **kwargs) -> None:
        """The config's, and the one that seeds each step."""
        super().register_hooks(*args, **kwargs)
        self.register_hook(SeedHook())

    def set_randomness(self, seed: Optional[int], diff_rank_seed: bool = False, deterministic: bool = False) -> None:
        """As mmengine's; a seed that the config gives also keeps a CPU to algorithms that give equal results each time,
        which includes the choice of mmlk's operators."""
        super().set_randomness(seed, diff_rank_seed, deterministic)
        if self._seed_given is None:
            self._seed_given = seed is not None
        if self._seed_given and not deterministic and get_device() == 'cpu':
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # finds bugs, and takes time

    def train(self) -> torch.nn.Module:
        """Launch training; to resume, first find what from."""
        if self._resume:
            self._choose_checkpoint()
        return super().train()

    def build_train_loop(self, loop: Union[BaseLoop, Dict]) -> BaseLoop:
        """The loop, over data in which each sample has its seed."""
        if isinstance(self._train_dataloader, dict) and isinstance(loop, dict):
            apart = self._randomness_cfg.get('diff_rank_seed', False)
            seed = self.seed - self.rank if apart else self.seed  # that all ranks have in common
            loader = self.build_dataloader(self._train_dataloader, seed=seed)
            if not seed_samples(loader, seed, self.rank, self._epoch_of_run):
                print_log('samples cannot be seeded one by one with this dataset and sampler: after --resume they will '
                          'not be those of an uninterrupted run', logger='current', level=logging.WARNING)
            self._train_dataloader = loader
        return super().build_train_loop(loop)

    def _maybe_compile(self, target: str) -> None:
        """As mmengine's, but for the optimizer's step: to compile it takes long, and Adam's fails in torch 2.12."""
        if target == 'train_step' and self.cfg.get('compile'):
            self.optim_wrapper.update_params = torch.compiler.disable(self.optim_wrapper.update_params)
        super()._maybe_compile(target)

    def resume(self, filename: str, *args, **kwargs) -> None:
        """As mmengine's; within an epoch, go on at the batch where the checkpoint was written."""
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
        """As mmengine's, but on the local disk the file is there whole or not at all."""
        local = isinstance(get_file_backend(out_dir, backend_args=backend_args), LocalBackend)
        if file_client_args is not None or not local:
            super().save_checkpoint(out_dir, filename, file_client_args, backend_args=backend_args, **kwargs)
            return
        with replacing(osp.join(out_dir, filename)) as temporary:
            super().save_checkpoint(out_dir, osp.basename(temporary), backend_args=backend_args, **kwargs)

    def _epoch_of_run(self) -> int:
        return self.epoch + 1 if isinstance(self._train_loop, EpochBasedTrainLoop) else 0

    def _choose_checkpoint(self) -> None:
        """Find what to resume from, check it, and take the seed of its run before anything is built with another."""
        found = [None, None, None]  # path, seed, why not
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
        if seed is not None and seed != self._randomness_cfg.get('seed'):
            if self._seed_given:
                print_log(f'the seed of the run to resume, {seed}, is taken, not {self._randomness_cfg["seed"]} of the '
                          'config', logger='current', level=logging.WARNING)
            self._randomness_cfg.update(seed=seed)
            self.set_randomness(**self._randomness_cfg)

    def _find_checkpoint(self) -> Tuple[Optional[str], Optional[int]]:
        """The checkpoint to resume from and its seed, as far as there is one on the local disk."""
        model = self.model.module if is_model_wrapper(self.model) else self.model
        path = self._load_from
        if path is None:
            hook = next((hook for hook in self.hooks if isinstance(hook, _CheckpointHook)), None)
            folder, template = self.work_dir, 'iter_{}.pth'
            if hook is not None:
                template = hook.filename_tmpl
                if hook.out_dir is not None:
                    folder = osp.join(str(hook.out_dir), osp.basename(osp.normpath(self.work_dir)))
            if '://' in folder:
                return None, None
            path = find_resumable(self.work_dir, folder, template, model)
            if path is None:
                return None, None
        elif '://' in path:
            return None, None
        return path, verify(path, model)['meta'].get('seed')
