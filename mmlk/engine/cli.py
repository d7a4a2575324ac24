"""What the command-line tools share: common options, reading a config, and checks before any long work."""
import argparse
import logging
import os
import os.path as osp
import sys
from typing import NoReturn, Sequence

from mmengine.config import Config, DictAction


def fail(message: str) -> NoReturn:
    """End the program with one message on stderr and exit code 2."""
    print(f'error: {message}', file=sys.stderr)
    raise SystemExit(2)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """``--cfg-options``, as in the stock tools."""
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override settings of the config, e.g. train_dataloader.batch_size=4')


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that ``tools/train.py`` and ``tools/test.py`` share with the stock ones."""
    parser.add_argument('--work-dir', help='where logs and checkpoints go; work_dirs/<config name> by default')
    add_config_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def read_config(path: str, cfg_options: dict = None) -> Config:
    """The config at ``path`` with overrides applied; ends the program with one message when it cannot be read."""
    if not osp.isfile(path):
        fail(f'no config at {path}')
    try:
        cfg = Config.fromfile(path)
    except (FileNotFoundError, ImportError, KeyError, SyntaxError) as error:
        fail(f'{path} cannot be read: {error}')
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    return cfg


def load_config(args: argparse.Namespace) -> Config:
    """The config of a tool with :func:`add_common_arguments`: overrides, launcher and work dir set."""
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
    """The path of a checkpoint given as a path, URL or catalogue name; ends the program when it cannot be had or read.

    It is read once here, through the allow-list of types, so that nothing later unpickles a file not looked at.
    """
    from mmlk.weights import WeightsError
    from mmlk.weights.fetch import find
    from mmlk.weights.read import read
    try:
        path = find(source)
        read(path)
    except WeightsError as error:
        fail(str(error))
    return str(path)


def build_runner(cfg: Config):
    """The runner of a config: its own ``runner_type``, else :class:`mmlk.engine.ResumableRunner`."""
    from mmengine.registry import RUNNERS

    from mmlk.engine import ResumableRunner
    return RUNNERS.build(cfg) if 'runner_type' in cfg else ResumableRunner.from_cfg(cfg)


def train(cfg: Config) -> None:
    """Train; ends the program with one message when a checkpoint cannot be read or written, or the disk is full."""
    from mmlk.engine.resuming import CheckpointError, disk_is_full
    logging.raiseExceptions = False  # else each line that does not fit on the disk prints a traceback
    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
        build_runner(cfg).train()
    except CheckpointError as error:
        fail(str(error))
    except OSError as error:
        if not disk_is_full(error):
            raise
        fail(f'the disk of {error.filename or cfg.work_dir} is full. Checkpoints are whole: when there is room again, '
             'go on from the last of them with --resume')


def is_detection(cfg: Config) -> bool:
    """Whether the config is one of mmdet."""
    return cfg.get('default_scope') == 'mmdet'


def preflight(cfg: Config, splits: Sequence[str]) -> None:
    """End the program with one message when files that a run needs are not there."""
    from mmlk.datasets.check import missing
    problems = missing(cfg, splits)
    if problems:
        fail('\n\n'.join(str(problem) for problem in problems))
