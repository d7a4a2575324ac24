"""Train a segmentor, a detector or a classifier.

    mmlk train configs/demo/upernet_replknet-tiny_ade20k.py
"""
import argparse
import os
from typing import TYPE_CHECKING

from mmlk._types import type_name, type_of
from mmlk.cli.options import add_common_arguments, fail

if TYPE_CHECKING:
    from mmengine.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='config file')
    add_common_arguments(parser)
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='resume from this checkpoint; without a value, from the newest whole one in the work dir. '
                        "While there is none, the run starts, from the config's load_from if it has one")
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help="scale the learning rate by the real batch size over the config's base_batch_size")


def apply_options(cfg: 'Config', args: argparse.Namespace) -> None:
    """Put the options into the config; end the program with one message if the config cannot honour one."""
    from mmengine.device import get_device
    from mmengine.optim import AmpOptimWrapper, OptimWrapper
    from mmengine.runner import find_latest_checkpoint

    from mmlk.cli.prepare import find_checkpoint, is_resumable
    if args.amp:
        wrapper = cfg.optim_wrapper
        kind = type_of(wrapper, 'OPTIM_WRAPPERS', cfg.get('default_scope'))
        if kind not in (OptimWrapper, AmpOptimWrapper) and 'type' in wrapper:
            fail(f'--amp works with OptimWrapper, the config has {type_name(wrapper)}')
        device = get_device()
        if device == 'mps':
            fail("--amp needs a CPU or a GPU: mmengine's AmpOptimWrapper does not run on this machine's mps")
        if device == 'cpu':
            wrapper.type = 'mmlk.BFloat16OptimWrapper'
            for key in ('dtype', 'loss_scale', 'use_fsdp'):  # of AmpOptimWrapper: bfloat16 needs none of them
                wrapper.pop(key, None)
        else:
            wrapper.type = 'AmpOptimWrapper'
            wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            fail('--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) in the config')
        cfg.auto_scale_lr.enable = True
    # ResumableRunner looks at load_from itself, once it knows whether there is something to resume
    ours = is_resumable(cfg)
    if args.resume == 'auto' and (ours or find_latest_checkpoint(cfg.work_dir)):
        cfg.resume = 'auto' if ours else True
        cfg.load_from = cfg.get('load_from') if ours else None
    elif args.resume not in (None, 'auto'):
        cfg.resume, cfg.load_from = True, find_checkpoint(args.resume)
    if not ours and cfg.get('load_from') and '://' not in cfg.load_from:
        cfg.load_from = find_checkpoint(cfg.load_from)


def train(args: argparse.Namespace) -> None:
    """Train in this process, one of those that a launcher started or the only one."""
    from mmlk.cli.prepare import build_runner, load_config, one_message, preflight
    cfg = load_config(args)
    apply_options(cfg, args)
    preflight(cfg, ('train', 'val'))
    cfg.setdefault('default_hooks', {})['batch_size'] = dict(type='mmlk.BatchSizeHook')
    with one_message():
        os.makedirs(cfg.work_dir, exist_ok=True)
        build_runner(cfg).train()


def run(args: argparse.Namespace) -> None:
    from torch.distributed.elastic.multiprocessing.errors import record

    from mmlk.engine.distributed import leave
    record(train)(args)  # the launcher of several processes then ends with the error of the first that failed
    leave()
