"""``--corruptions`` of ``mmlk test``: one model, tested on clean and on corrupted images."""
import argparse
import hashlib
import json
import os.path as osp
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List

from mmlk.cli.options import check_minimum, command_line, fail

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner

    from mmlk.evaluation.robustness import Plan, Results

# Settings of the test's dataloader that change its speed only.
_SPEED = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor')


def add_arguments(parser: argparse.ArgumentParser, folder: bool = True) -> None:
    parser.add_argument('--corruptions', nargs='+', metavar='NAME', help='test on clean images and on these '
                        'corruptions of them: all, noise, blur, weather, digital, or names such as fog; a second call '
                        'goes on')
    parser.add_argument('--severities', nargs='+', type=int, metavar='N', help='of the corruptions, 1 to 5 (default: '
                        'all five)')
    parser.add_argument('--noise-severities', nargs='+', type=int, metavar='N', help='of the noise corruptions, where '
                        "they differ; 1 2 3 is SegFormer's rule")
    parser.add_argument('--corruption-seed', type=int, metavar='N', help='of their random numbers (default: 0)')
    if folder:
        parser.add_argument('--corruptions-dir', metavar='DIR', help="folder of the results (default: 'robustness' "
                            'in the work dir)')


def check(args: argparse.Namespace) -> 'Plan':
    """What to test; none without ``--corruptions``. Ends the program with one message if an option is wrong."""
    for name in ('out', 'show_dir', 'report'):
        if args.corruptions is not None and getattr(args, name, None):
            fail(f"--{name.replace('_', '-')} is of one test, and --corruptions makes many: leave one of them out")
    return read_plan(args)


def read_plan(args: argparse.Namespace) -> 'Plan':
    """What the options ask for; none without ``--corruptions``. Ends the program with one message if one is wrong."""
    from mmlk.evaluation.robustness import plan
    if args.corruptions is None:
        for name in ('severities', 'noise_severities', 'corruption_seed', 'corruptions_dir'):
            if getattr(args, name, None) is not None:
                fail(f"--{name.replace('_', '-')} has no effect without --corruptions")
        return {}
    check_minimum(args, corruption_seed=0)
    try:
        return plan(args.corruptions, args.severities or (1, 2, 3, 4, 5), args.noise_severities)
    except ValueError as error:
        fail(f'--corruptions: {error}')


def given_options(args: argparse.Namespace) -> List[str]:
    """The options that :func:`add_arguments` added, as they were given, but for the folder."""
    options = []
    for name in ('corruptions', 'severities', 'noise_severities', 'corruption_seed'):
        value = getattr(args, name)
        if value is not None:
            options += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return options


def prepare(cfg: 'Config', args: argparse.Namespace, checkpoint: str) -> 'Results':
    """Put the corruption into the config, and read what was tested before; end the program with one message if the
    images cannot be corrupted, or what was tested before was of something else."""
    from mmlk.datasets.corruptions import add_corrupt
    from mmlk.evaluation.robustness import Results
    seed = args.corruption_seed or 0
    folder = args.corruptions_dir or osp.join(cfg.work_dir, 'robustness')
    try:
        results = Results(osp.join(folder, 'results.json'), fingerprint(cfg, checkpoint, seed))
        add_corrupt(cfg, seed)
    except ValueError as error:
        fail(str(error))
    return results


def fingerprint(cfg: 'Config', checkpoint: str, seed: int) -> Dict[str, str]:
    """What the results of a test depend on: digests of the checkpoint and of settings, the version and the seed."""
    from mmlk import __version__
    from mmlk._types import with_paths
    from mmlk.weights.fetch import digest
    settings = with_paths(cfg.to_dict())
    settings['test_dataloader'] = {key: value for key, value in settings['test_dataloader'].items()
                                   if key not in _SPEED}
    found = {'checkpoint': digest(Path(checkpoint)), 'version of mmlk': __version__, 'seed': str(seed)}
    for key in ('model', 'test_dataloader', 'test_evaluator', 'test_cfg', 'custom_hooks'):
        text = json.dumps(settings.get(key), sort_keys=True, default=str)
        found[key] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def test(runner: 'Runner', tests: 'Plan', results: 'Results') -> None:
    """Test on clean and on corrupted images what was not tested before, and write the report.

    The model's weights are loaded. All processes take part; the first one reads and writes the results.
    """
    from mmengine.dist import broadcast_object_list, is_main_process
    from mmengine.logging import print_log

    from mmlk.datasets.corruptions import set_corruption
    from mmlk.evaluation.robustness import CLEAN
    shared = [results.tests]
    broadcast_object_list(shared)
    results.tests = shared[0]
    plan = [(CLEAN, 0), *((name, severity) for name, levels in tests.items() for severity in levels)]
    due = [test for test in plan if results.find(*test) is None]
    run = runner.test
    for done, (name, severity) in enumerate(due, len(plan) - len(due)):
        label = f'{name}, severity {severity}' if severity else 'clean images'
        print_log(f'test {done + 1} of {len(plan)}: {label}', logger='current')
        set_corruption(runner.test_loop.dataloader.dataset, None if name == CLEAN else name, severity)
        results.add(run(), name, severity)
        if is_main_process():
            results.save()
        run = partial(_again, runner)
    if is_main_process():
        report(results, tests)


def _again(runner: 'Runner') -> Dict[str, Any]:
    """A further pass over the test set. The model was merged or optimized in the first one, if it was asked for."""
    from mmlk.engine import MergeBranchesHook
    runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, MergeBranchesHook)]
    return runner.test_loop.run()


def report(results: 'Results', tests: 'Plan') -> None:
    """Write the report beside the results, and print the tables."""
    from mmengine.logging import print_log

    from mmlk.evaluation.robustness import main_metrics, robustness, table, write_report
    found = robustness(results, tests)
    folder = results.path.parent
    write_report(folder, found, dict(command=command_line(), fingerprint=results.fingerprint, tests=tests))
    tables = '\n\n'.join(table(one) for one in main_metrics(found)) or (
        'no test gave a number: the test_evaluator has none, or the detector finds nothing')
    print_log(f'robustness, by corruption and severity:\n\n{tables}\n\nThe report is in {folder}', logger='current')
