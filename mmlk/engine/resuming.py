"""Writing checkpoints atomically, and checking them before training resumes.

A checkpoint is written to a temporary file in the same folder, which is then renamed. If the process is killed, either
the old file or the complete new one is there.
"""
import errno
import logging
import math
import os
import os.path as osp
import re
from contextlib import contextmanager
from glob import escape, glob
from typing import Any, Dict, Iterator, List, Mapping, Optional

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import Tensor, nn

from mmlk._types import type_of
from mmlk.registry import HOOKS
from mmlk.weights import WeightsError
from mmlk.weights.loading import compare_weights
from mmlk.weights.read import read_weights

from .repeatable import GRADIENTS, average_gradients
from .sparsity import SPARSITY, DynamicSparsityHook

UNFINISHED = '.unfinished'  # suffix of the temporary file while a checkpoint is written
LAST = 'last_checkpoint'  # mmengine's name of the file that holds the newest checkpoint's path
_OWN_CONFIG = 'Resume with the config of its run; to start a new one from its weights, set load_from'
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or training cannot resume from it. The message says what to do."""


def disk_is_full(error: OSError) -> bool:
    """Returns whether the error means that there is no space: a full disk, a quota or a maximum file size."""
    return error.errno in _FULL


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """A context manager that replaces a file atomically.

    It yields the name of a temporary file in the same folder, for the caller to write to. On exit, that file is flushed
    to the disk and renamed to ``path``. If the process or the machine stops at any moment, ``path`` is either the
    complete old file or the complete new one.

    Raises:
        CheckpointError: The file could not be written. The temporary file is removed, and the old file is unchanged.
    """
    temporary = path + UNFINISHED
    try:
        yield temporary
        with open(temporary, 'r+b') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if osp.isfile(temporary):
            os.remove(temporary)
        why = 'the disk is full' if disk_is_full(error) else str(error)
        raise CheckpointError(f'{path} could not be written: {why}. Earlier checkpoints are whole: when that is '
                              'mended, go on from the last of them with --resume') from error


def verify(path: str, model: nn.Module) -> dict:
    """Reads a checkpoint of a training run and checks it, including the checksums of the whole file.

    Args:
        path: The file.
        model: The model that will be trained from it.

    Returns:
        The contents of the checkpoint, with memory-mapped tensors.

    Raises:
        WeightsError: The file is missing, truncated or damaged, or contains a type that is not allowed.
        CheckpointError: The file is intact, but it is not a checkpoint of a training run, or it is of another model.
    """
    checkpoint = read_weights(path)
    meta, hub, state = (checkpoint.get(key) if isinstance(checkpoint, dict) else None
                        for key in ('meta', 'message_hub', 'state_dict'))
    whole = all(isinstance(part, dict) for part in (meta, hub, state)) \
        and all(type(meta.get(key)) is int for key in ('epoch', 'iter')) \
        and all(isinstance(hub.get(key), dict) for key in ('log_scalars', 'runtime_info', 'resumed_keys'))
    if not whole:
        raise CheckpointError(f'{path} holds weights, not the state of a training run, so there is nothing to resume. '
                              f'{_start_from(path, model)}')
    _compare(path, state, model)
    return checkpoint


def _start_from(path: str, model: nn.Module) -> str:
    """Returns a sentence that says whether training can start from the weights in a file."""
    try:
        compare_weights(model, path, other_classes=True)
    except WeightsError as error:
        return f'Nor can training start from them: {error}'
    return 'To start from these weights, set load_from'


def check_state(path: str, checkpoint: dict, runner: Runner) -> None:
    """Checks, before training, that a checkpoint holds the same parts of the training state as the runner needs.

    mmengine ignores parts that are missing from a checkpoint: the optimizer, the schedule or the averaged weights would
    start from the beginning without an error.

    Args:
        path: The file, for error messages.
        checkpoint: The contents of the file.
        runner: The runner, before it starts to train.

    Raises:
        CheckpointError: The state of the optimizer, the schedulers, the averaged weights, the sparsity masks or the
            accumulated gradients is in the checkpoint but not in the runner, or the other way round.
    """
    schedulers = runner.param_schedulers
    lacking = [what for what, lacks in (
        ('the optimizer', 'optimizer' not in checkpoint),
        ('the learning rate schedule', schedulers is not None and 'param_schedulers' not in checkpoint)) if lacks]
    if lacking:
        last = _last_beside(path)
        other = f'{last}, the last of this run' if last else 'another checkpoint of this run'
        raise CheckpointError(f"{path} does not hold the state of {' and of '.join(lacking)}, which would start anew: "
                              'the best checkpoint of a run holds neither, and with save_optimizer=False or '
                              f'save_param_scheduler=False no other does. Resume from {other}; to start a new schedule '
                              'from its weights, set load_from')
    saved = checkpoint.get('param_schedulers')
    if isinstance(schedulers, (list, tuple)) and isinstance(saved, list) and len(saved) != len(schedulers):
        raise CheckpointError(f'{path} holds the state of {len(saved)} schedulers, and this config has '
                              f'{len(schedulers)}. {_OWN_CONFIG}')
    averaged, averages = 'ema_state_dict' in checkpoint, any(isinstance(hook, EMAHook) for hook in runner.hooks)
    if averaged and not averages:
        raise CheckpointError(f'{path} is of a run with an EMAHook and holds its average in place of the weights, and '
                              f'this config has no EMAHook. {_OWN_CONFIG}')
    if averages and not averaged:
        raise CheckpointError(f'{path} is of a run without an EMAHook, and this config has one, whose average would '
                              f'lack all steps so far. {_OWN_CONFIG}')
    if SPARSITY in checkpoint and not any(isinstance(hook, DynamicSparsityHook) for hook in runner.hooks):
        raise CheckpointError(f'{path} is of a run with a DynamicSparsityHook, and this config has none, so that its '
                              f'zeros would be lost. {_OWN_CONFIG}')
    wrapper = runner.optim_wrapper
    steps = wrapper.get('accumulative_counts', 1) if isinstance(wrapper, dict) else getattr(
        wrapper, '_accumulative_counts', 1)
    held, done = checkpoint.get(GRADIENTS, {}), checkpoint['meta']['iter']
    began = held.get('accumulative_counts')
    if began != steps and held.get('values'):
        raise CheckpointError(f'{path} holds gradients accumulated with accumulative_counts={began}, and this config '
                              f'has {steps}. {_OWN_CONFIG}')
    if began != steps and done % steps:
        raise CheckpointError(f'{path} was written after {done} iterations, between two updates of accumulative_counts='
                              f'{steps}, without the gradients accumulated so far. Resume from a checkpoint after a '
                              f'multiple of {steps} iterations; to start a new schedule from its weights, set '
                              'load_from')


def _last_beside(path: str) -> Optional[str]:
    """Returns the checkpoint that ``last_checkpoint`` in the same folder names, if it exists and is not ``path``."""
    file = osp.join(osp.dirname(path), LAST)
    if not osp.isfile(file):
        return None
    with open(file) as stream:
        last = osp.join(osp.dirname(path), osp.basename(stream.read().strip()))
    return last if osp.isfile(last) and osp.abspath(last) != osp.abspath(path) else None


def _compare(path: str, file: Mapping[str, Tensor], model: nn.Module) -> None:
    found, wanted = ({re.sub(r'^module\.', '', name): tuple(getattr(value, 'shape', ()))
                      for name, value in state.items() if not name.endswith('num_batches_tracked')}
                     for state in (file, model.state_dict()))
    faults = [*(f'{name} is missing' for name in wanted if name not in found),
              *(f'{name} is too many' for name in found if name not in wanted),
              *(f'{name} is {found[name]} in the file, {wanted[name]} in the model'
                for name in wanted if found.get(name, wanted[name]) != wanted[name])]
    if faults:
        more = f', and {len(faults) - 3} more' if len(faults) > 3 else ''
        raise CheckpointError(f'{path} is a checkpoint of another model than this config builds: '
                              f"{'; '.join(faults[:3])}{more}. Resume with the config of its run, or in another work "
                              'dir; to start from its weights, set load_from')


def find_resumable(work_dir: str, folder: str, template: str, model: nn.Module) -> Optional[str]:
    """Finds the newest intact checkpoint of a run: the one that ``last_checkpoint`` names, otherwise an earlier one.

    Damaged checkpoints are skipped, with a warning for each.

    Args:
        work_dir: The folder of ``last_checkpoint``.
        folder: The folder of the checkpoints.
        template: The file name of a checkpoint, with ``{}`` for the number.
        model: The model that will be trained from it.

    Returns:
        The path of the checkpoint, or None if there are no checkpoints yet.

    Raises:
        CheckpointError: There are checkpoints, but none can be read; or the newest intact one is of another model.
    """
    candidates = _candidates(work_dir, folder, template)
    refused = []
    for path in candidates:
        try:
            verify(path, model)
        except WeightsError as error:
            refused.append(str(error))
            continue
        if refused:
            print_log('\n'.join([*refused, f'going on from {path} instead']), logger='current',
                      level=logging.WARNING)
        return path
    if refused:
        raise CheckpointError('none of the checkpoints can be resumed from:\n  ' + '\n  '.join(refused) +
                              '\nTo start again, train without --resume')
    return None


def _numbered(template: str) -> str:
    """Returns a regular expression for the file names of a template. Its group is the number."""
    return re.sub(r'\\{.*?\\}', r'(\\d{1,18})', re.escape(template))


def _candidates(work_dir: str, folder: str, template: str) -> List[str]:
    """Returns the paths to try, in this order: the one that ``last_checkpoint`` names, those with lower numbers
    (highest first), and the rest, which may be of another run."""
    pattern = re.compile(_numbered(template))

    def number(path: str) -> float:
        match = pattern.fullmatch(osp.basename(path))
        return int(match.group(1)) if match else math.inf

    last = ''
    if osp.isfile(osp.join(work_dir, LAST)):
        with open(osp.join(work_dir, LAST)) as file:
            last = file.read().strip()
    paths = [path for path in glob(osp.join(escape(folder), '*')) if osp.isfile(path) and number(path) < math.inf]
    paths.sort(key=lambda path: (number(path) > number(last), -number(path)))
    # if the folder was moved or copied, last_checkpoint still contains the old path
    first = [path for path in (osp.join(folder, osp.basename(last)), last) if osp.isfile(path)][:1]
    if last and not (first or paths):
        first = [last]  # verify() then raises an error that says that the file is missing
    return first + [path for path in paths if path not in first]


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """mmengine's ``CheckpointHook``, but an intact checkpoint exists at any time, even if the process is killed.

    - An old checkpoint, or an old best checkpoint, is deleted only after the new one is complete and
      ``last_checkpoint`` names it.
    - When training starts, the temporary and outdated files that a killed run left in the same folder are deleted.
    - If a killed run did not finish a validation that ``save_best`` needs, the validation runs when training resumes.

    The hook deletes only files in the run's own folder that have the names it gives itself, up to the step at which the
    run resumes. Any other path that a checkpoint names is left alone, and so is the best checkpoint by a metric that
    ``save_best`` no longer lists. The arguments are those of mmengine's hook. Atomic replacement is for the local disk:
    other file backends write whole objects anyway.
    """

    #: The path of the best checkpoint so far for each metric, while a better one is being saved.
    _replacing: Optional[Dict[str, Optional[str]]] = None

    def before_train(self, runner: Runner) -> None:
        """Deletes the files that a killed run left behind, and runs the validation that it did not finish."""
        self._forget_other_best(runner.message_hub.runtime_info)
        hub, self._step = runner.message_hub, runner.epoch if self.by_epoch else runner.iter
        known = dict(hub.runtime_info)  # read from the file, so its values may have any type
        if 'keep_ckpt_ids' in known:
            steps = known['keep_ckpt_ids'] if isinstance(known['keep_ckpt_ids'], list) else []
            hub.update_info('keep_ckpt_ids', [step for step in steps if type(step) is int and 0 <= step <= self._step])
        super().before_train(runner)
        if 'last_ckpt' in known:  # with none, mmengine would not record a new best score
            self.last_ckpt = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(self._step))
            hub.update_info('last_ckpt', self.last_ckpt)
        self._take_best(runner)
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            self._tidy(known)
        hub.update_info('replaced_best_ckpts', [])
        if self.save_best and known.get('last_validation') != runner.iter and _validation_is_due(runner):
            runner.val_loop.run()

    def _take_best(self, runner: Runner) -> None:
        """Keeps the known best checkpoints that belong to the metrics of ``save_best``, and forgets the others."""
        info = runner.message_hub.runtime_info
        for metric, path in self._best_paths().items():
            if not path:
                continue
            one = len(self.key_indicators) == 1
            name = self.key_indicators[0] if one else metric
            own = self._own(path, None if name == 'auto' else name)
            if own is None:
                print_log(f'{osp.basename(str(path))} is not the best checkpoint by {name}: the best so far by {name} '
                          'is not known', logger='current', level=logging.WARNING)
                for key in ('best_score', 'best_ckpt'):
                    info.pop(key if one else f'{key}_{metric}', None)
            elif not self.file_backend.exists(own):
                own = None  # the file is in the folder of the earlier run; its score is still valid
            self._set_best_path(metric, own)

    def _tidy(self, known: dict) -> None:
        """Deletes temporary files, and best checkpoints that a killed run had replaced but not deleted."""
        names = re.compile('|'.join([_numbered(self.filename_tmpl), self._best_name(None), re.escape(LAST)]))
        for path in glob(osp.join(escape(str(self.out_dir)), f'*{UNFINISHED}')):
            if names.fullmatch(osp.basename(path)[:-len(UNFINISHED)]) and osp.isfile(path):
                os.remove(path)
        best = {osp.basename(str(path)) for key, path in known.items() if str(key).startswith('best_ckpt')}
        replaced = known.get('replaced_best_ckpts')
        for path in replaced if isinstance(replaced, list) else []:
            own = self._own(path, None)
            if own and osp.basename(own) not in best:
                self._delete(own)

    def _best_name(self, metric: Optional[str]) -> str:
        """Returns a regular expression for file names of best checkpoints by one metric, or by any if it is None."""
        name = re.escape(f'best_{metric or ""}'.replace('/', '_')) + ('' if metric else '.+')
        return f'{name}_{_numbered(self.filename_tmpl)}'

    def _own(self, path: Any, metric: Optional[str]) -> Optional[str]:
        """Returns the path of a best checkpoint in the run's own folder; None if it is not a checkpoint of this run."""
        name = osp.basename(path) if isinstance(path, str) else ''
        match = re.fullmatch(self._best_name(metric), name)
        if not match or match.re.groups and int(match.group(1)) > self._step:
            return None
        return self.file_backend.join_path(self.out_dir, name)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = None
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            kept = [*self.keep_ckpt_ids, step]
            if len(kept) > self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(kept[0])
            self.keep_ckpt_ids.append(step)  # a deque with a maximum length, which drops its first element
            # The saved list includes the outdated checkpoint: if this process is killed before it deletes that file,
            # the resumed run does.
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        if self._replacing is not None:  # a better one is being saved; listed for the same reason
            runner.message_hub.update_info('replaced_best_ckpts', self._replaced())
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        average_gradients(runner)
        runner.save_checkpoint(self.out_dir, name, self.file_client_args, save_optimizer=self.save_optimizer,
                               save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
                               backend_args=self.backend_args, **self.args)
        if is_main_process():
            with replacing(osp.join(runner.work_dir, LAST)) as temporary, open(temporary, 'w') as file:
                file.write(self.last_ckpt)
            if outdated:
                self._delete(self.file_backend.join_path(self.out_dir, outdated))
        if outdated:
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        self._replacing = self._best_paths()
        if 'auto' not in self.key_indicators:  # the name and rule of 'auto' are known after the first validation
            runner.message_hub.update_info('best_rules', self._rules())
        # mmengine would delete the old best checkpoint before it writes the new one, so its path is hidden here.
        for metric in self._replacing:
            self._set_best_path(metric, None)
        runner.message_hub.update_info('last_validation', runner.iter)
        runner.message_hub.update_info('replaced_best_ckpts', [])
        super()._save_best_checkpoint(runner, metrics)
        replaced = self._replaced()
        for metric, path in self._best_paths().items():
            self._set_best_path(metric, path or self._replacing.get(metric))
        self._replacing = None
        if is_main_process():
            for path in replaced:
                self._delete(path)

    def _rules(self) -> List[List[str]]:
        return [list(pair) for pair in zip(self.key_indicators, self.rules)]

    def _forget_other_best(self, known: dict) -> None:
        """Forgets the best score so far if the resumed run has another ``save_best``, or none. Keeps the file."""
        same = self.save_best and ('auto' in self.key_indicators or known.get('best_rules') in (None, self._rules()))
        if not same:
            known.pop('replaced_best_ckpts', None)
        if self.save_best and not same:
            for key in [key for key in known if key.startswith(('best_score', 'best_ckpt'))]:
                del known[key]

    def _replaced(self) -> List[str]:
        """Returns the paths of the best checkpoints that another one has replaced."""
        now = self._best_paths()
        return [path for metric, path in self._replacing.items() if path and now.get(metric) not in (None, path)]

    def _best_paths(self) -> Dict[str, Optional[str]]:
        """Returns the path of the best checkpoint so far for each metric. With only one metric, the key is empty."""
        if not self.save_best:
            return {}
        return {'': self.best_ckpt_path} if len(self.key_indicators) == 1 else dict(self.best_ckpt_path_dict)

    def _set_best_path(self, metric: str, path: Optional[str]) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[metric] = path

    def _delete(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path) and not osp.islink(path):
            self.file_backend.rmtree(path)


def safe_hook(hook: Any, scope: Optional[str]) -> Any:
    """Returns the config of a hook, with mmengine's checkpoint hook replaced with :class:`CheckpointHook`.

    Args:
        hook: The config of a hook, or a hook. A hook is returned as it is.
        scope: The ``default_scope`` of the whole config.
    """
    stock = isinstance(hook, dict) and type_of(hook, 'HOOKS', scope) is _CheckpointHook
    return dict(hook, type='mmlk.CheckpointHook') if stock else hook


def _validation_is_due(runner: Runner) -> bool:
    """Returns whether the training loop would have validated at the iteration at which the run resumes."""
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    if isinstance(loop, EpochBasedTrainLoop):
        done, end = loop.epoch, loop.max_epochs
        if loop.iter != done * len(loop.dataloader):  # within an epoch
            return False
    elif isinstance(loop, IterBasedTrainLoop):
        done, end = loop.iter, loop.max_iters
    else:
        return False
    loop._decide_current_val_interval()
    return done > 0 and done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)
