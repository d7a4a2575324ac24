"""What the commands share: reading a config and a checkpoint, checks before any long work, and the runner."""
import argparse
import json
import logging
import os
import os.path as osp
import sys
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional, Sequence

from mmengine.config import Config

from mmlk._text import printable
from mmlk._mmpretrain import require_mmpretrain
from mmlk._types import TIMM, is_a
from mmlk.cli.options import fail
from mmlk.engine import checkpoints, config, handlers, loading
from mmlk.engine.distributed import read_slurm, use_gloo

# Of annotations: pickles, and YAML with mmengine's loader, are programs.
_PROGRAMS = ('.pickle', '.pkl', '.yaml', '.yml')


def is_config(text: str) -> bool:
    """Whether an argument is meant as a config file, be it one of a format that is refused."""
    return text.lower().endswith(('.py', *config.DATA_FORMATS))


def add_models(args: argparse.Namespace, option: str, first: str, others: Sequence[Sequence[str]]) -> None:
    """Set ``models``, (model, checkpoint) pairs, and the default ``names``; end the program if an option is wrong.

    Args:
        args: Arguments with ``checkpoint``, that of the first model, and ``names``.
        option: The option that adds a model, without its dashes, such as ``model2``.
        first: The first model: a config, ``timm:NAME``, or what else the command takes.
        others: The values of the option: a model, and its checkpoint or nothing.
    """
    kind = option.rstrip('2')
    if any(len(model) > 2 for model in others):
        fail(f'--{option} takes a {kind} and at most one checkpoint; give it once for every {kind}')
    args.models = [(first, args.checkpoint), *((*model, None)[:2] for model in others)]
    args.names = args.names or [default_name(model) for model, _ in args.models]


def default_name(model: str) -> str:
    """The name of a model that ``--names`` does not name."""
    if model.startswith(TIMM):
        return model[len(TIMM):]
    return Path(model).stem if is_config(model) else model


class PrintableRecord(logging.LogRecord):
    """A log's record whose message is printable."""

    def getMessage(self) -> str:
        return printable(super().getMessage())


def guard_logs() -> None:
    """Let every log of this process be printable: mmengine's quote names of weights and of files."""
    logging.setLogRecordFactory(PrintableRecord)


def read_config(path: str, cfg_options: Optional[dict] = None) -> Config:
    """The config at ``path`` with overrides applied; ends the program with one message when it cannot be read.

    From here on mmengine, too, reads checkpoints through the allow-list, YAML as plain data and no pickles, pipelines
    name the file that they fail on, configs with classes in them can be written, and logs are printable whatever they
    quote of a file.
    """
    for module in (checkpoints, config, handlers, loading):
        module.guard()
    guard_logs()
    _hush()
    if not osp.isfile(path):
        fail(f'no config at {path}')
    try:
        cfg = config.read_config_file(path)
    except config.ConfigError as error:
        fail(str(error))
    try:
        cfg.merge_from_dict(cfg_options or {})
    except (KeyError, TypeError, ValueError) as error:
        fail(f'--cfg-options do not fit {path}: {error}')
    if is_classification(cfg):
        try:
            require_mmpretrain()
        except ImportError as error:
            fail(f'{path}: {error}')
    return cfg


def load_config(args: argparse.Namespace) -> Config:
    """The config of a command that has :func:`mmlk.cli.options.add_common_arguments`, with overrides, launcher and work
    dir set."""
    if 'LOCAL_RANK' not in os.environ:
        os.environ['LOCAL_RANK'] = str(args.local_rank)
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif not cfg.get('work_dir'):
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    return cfg


def find_checkpoint(source: str) -> str:
    """The path of a checkpoint given as :func:`mmlk.weights.load` takes it; ends the program when it cannot be read.

    It is read once here, through the allow-list of types, so that nothing later unpickles a file not looked at.
    """
    from mmlk.weights import WeightsError
    from mmlk.weights.fetch import find
    from mmlk.weights.read import read_weights
    try:
        path = find(source)
        read_weights(path)
    except WeightsError as error:
        fail(str(error))
    return str(path)


def is_resumable(cfg: Config) -> bool:
    """Whether the runner of a config is :class:`mmlk.engine.ResumableRunner`, or one derived from it."""
    runner = dict(type=cfg.get('runner_type', 'mmlk.ResumableRunner'))
    return is_a(runner, 'ResumableRunner', 'RUNNERS', cfg.get('default_scope'))


def build_runner(cfg: Config):
    """The runner of a config: its own ``runner_type``, else :class:`mmlk.engine.ResumableRunner`. Launched processes
    join, by gloo on a CPU.

    Ends the program with one message where mmlk or a registry refuses what the config says.
    """
    from mmengine import registry

    import mmlk
    from mmlk.engine import ResumableRunner
    from mmlk.engine.resuming import safe_hook
    scope = cfg.get('default_scope')
    added = ['CheckSamplesHook', 'BusyMachineHook', *([] if is_detection(cfg) else ['CheckLabelsHook'])]
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [*hooks, *(dict(type=f'mmlk.{name}') for name in added
                                  if not any(is_a(hook, name, 'HOOKS', scope) for hook in hooks))]
    if not is_resumable(cfg):  # that one does so by itself
        default = dict(checkpoint=dict(type='CheckpointHook', interval=1))  # as mmengine has it
        default.update(cfg.get('default_hooks') or {})
        cfg.default_hooks = {key: safe_hook(hook, scope) for key, hook in default.items()}
        cfg.custom_hooks = [safe_hook(hook, scope) for hook in cfg.get('custom_hooks') or []]
    try:
        if cfg.get('launcher') == 'slurm':
            read_slurm(cfg.get('env_cfg', {}).get('dist_cfg', {}).get('port'))
        use_gloo(cfg)
    except ValueError as error:
        fail(str(error))
    try:
        return registry.RUNNERS.build(cfg) if 'runner_type' in cfg else ResumableRunner.from_cfg(cfg)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        refused_by = traceback.extract_tb(error.__traceback__)[-1].filename
        if not refused_by.startswith((osp.dirname(mmlk.__file__), osp.dirname(registry.__file__))):
            raise  # with its traceback, which code of others needs
        fail(f'{cfg.filename}: {error}')


def _hush() -> None:
    """Without warnings of the toolboxes about their own and others' code, unless Python was asked for some (-W)."""
    if sys.warnoptions:
        return
    for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
        warnings.simplefilter('ignore', category)
    for text in (r'[\s\S]*deprecated', 'The draw is False', 'Default ``avg_non_ignore`` is False'):
        warnings.filterwarnings('ignore', message=text)


@contextmanager
def one_message() -> Iterator[None]:
    """End the program with one message where a run meets weights, checkpoints or data that cannot be used, a full disk,
    or a setting that mmlk refuses, wherever in the run that is."""
    from mmlk.engine.resuming import CheckpointError, disk_is_full
    from mmlk.weights import WeightsError
    logging.raiseExceptions = False  # else each line that does not fit on the disk prints a traceback
    try:
        yield
    except (CheckpointError, WeightsError) as error:
        fail(str(error))
    except OSError as error:
        if not disk_is_full(error):
            raise
        fail(f'the disk of {error.filename or os.getcwd()} is full. Checkpoints are whole: when there is room again, '
             'go on from the last of them with --resume')
    except loading.DataError as error:  # from another process, it has that one's traceback before it
        fail(str(error).splitlines()[-1].rpartition('DataError: ')[2])
    except json.JSONDecodeError as error:
        fail(f'an annotation file is not JSON: {error}; tools/check_data.py says which')
    except (RuntimeError, TypeError, ValueError) as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        fail(str(refusal))


def _refusal(error: BaseException) -> Optional[BaseException]:
    """The error that a ``raise`` of mmlk's own began with, not one that its code ran into; None if there is none.

    mmengine gives a TypeError of a hook anew, which leaves the first one as the context.
    """
    import mmlk
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if frames and frames[-1].filename.startswith(osp.join(osp.dirname(mmlk.__file__), '')):
            return error if (frames[-1].line or '').startswith('raise ') else None
        error = error.__context__ if isinstance(error, TypeError) else None
    return None


def is_detection(cfg: Config) -> bool:
    """Whether the config is one of mmdet."""
    return cfg.get('default_scope') == 'mmdet'


def is_classification(cfg: Config) -> bool:
    """Whether the config is one of mmpretrain."""
    return cfg.get('default_scope') == 'mmpretrain'


def preflight(cfg: Config, splits: Sequence[str]) -> None:
    """End the program with one message when files that a run needs are not there, settings contradict the datasets, or
    annotations would run code."""
    from mmlk.datasets.check import datasets, missing
    from mmlk.datasets.settings import conflicts
    for where, dataset in (found for split in splits for found in datasets(cfg, split)):
        for key in ('ann_file', 'proposal_file'):
            if str(dataset.get(key) or '').lower().endswith(_PROGRAMS):
                fail(f'{where}.{key} is {dataset[key]}, which runs code as mmengine reads it; make it a JSON file')
    problems = missing(cfg, splits) or conflicts(cfg, splits)
    if problems:
        fail('\n\n'.join(str(problem) for problem in problems))
