"""The steps of a comparison before its report: reading the data, counting the models, training and testing them."""
import sys
from typing import Dict, Sequence, Tuple

from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn

from mmlk._paths import MIM
from mmlk.analysis.complexity import Complexity, build_on_meta, count
from mmlk.datasets.audit import audit
from mmlk.engine.network import in_channels
from mmlk.evaluation.robustness import Plan
from mmlk.studies import compare
from mmlk.studies.display import CONSOLE, progress, track


def check_files(entries: Sequence[compare.ComparedModel]) -> None:
    """Read every file of the models' datasets, each dataset once.

    Raises:
        ValueError: a file cannot be used.
    """
    seen = []
    with progress(MofNCompleteColumn()) as bar:
        for entry in entries:
            named = [dict(dataset, pipeline=None) for split in compare.SPLITS
                     for _, dataset in compare.datasets(entry.cfg, split)]
            if named in seen:
                continue
            seen.append(named)
            reports = audit(entry.cfg, track=lambda items, total, where: bar.track(
                items, total, description=f'reading {where.partition(".")[0]}'))
            bad = [f'{kind}: {line}' for found in reports for kind, lines in found.problems.items()
                   if kind in compare.FATAL for line in lines]
            if bad:
                more = f'\n  and {len(bad) - 5} more' if len(bad) > 5 else ''
                raise ValueError(f'the data of {entry.path} cannot be used as it is:\n  ' + '\n  '.join(bad[:5]) + more
                                 + '\nMend or remove these files; tools/check_data.py lists all of them')


def count_all(entries: Sequence[compare.ComparedModel], size: Tuple[int, int]) -> Dict[str, Complexity]:
    """Parameters and multiply-adds by model, for one image of ``size`` (height and width in pixels). This also finds
    models that cannot be built, before anything is trained.

    Raises:
        ValueError: a model cannot be built.
    """
    counted = {}
    for entry in track(entries, 'counting'):
        try:
            counted[entry.name] = count(build_on_meta(entry.cfg), size, in_channels(entry.cfg))
        except NotImplementedError as error:
            CONSOLE.print(f'{entry.name} cannot be counted: {error}')
        except Exception as error:  # a foreign model's own
            raise ValueError(f'{entry.path}: the model cannot be built: {type(error).__name__}: {error}') from error
    return counted


def carry_out(runs: Sequence[compare.Run]) -> None:
    """Train and test the runs that are not finished.

    Raises:
        compare.RunFailed: a training or a test ended with an error.
    """
    left = [run for run in runs if not run.finished]
    if len(left) < len(runs):
        CONSOLE.print(f'{len(runs) - len(left)} of {len(runs)} runs are finished already.')
    with progress(TextColumn('{task.completed}/{task.total}'), TimeRemainingColumn()) as bar:
        whole = bar.add_task('all runs', total=len(left), visible=len(left) > 1)
        for run in left:
            task = bar.add_task(run.label, total=None)

            def tick(step, done, total):
                bar.update(task, description=f'{run.label}: {step}', completed=done, total=total)

            if not sys.stdout.isatty():
                step = 'testing' if run.checkpoint else 'training and testing'
                CONSOLE.print(f'{run.label}: {step}; logs are in {run.folder}')
            run.carry_out(MIM / 'tools', tick)
            bar.remove_task(task)
            bar.advance(whole)
            took = f"trained in {run.state['train_seconds']:.0f} s, " if run.seed is not None else ''
            found = [f'{metric} {run.state["metrics"][key] * factor:.2f}' for metric, (key, factor) in
                     compare.METRICS[run.entry.task].items() if key in run.state['metrics']]
            CONSOLE.print(f"{run.label}: {took}tested in {run.state['test_seconds']:.0f} s: {', '.join(found)}")


def corrupt(runs: Sequence[compare.Run], options: Sequence[str], plan: Plan, seed: int) -> None:
    """Test the runs on corrupted images, as far as they have not been.

    Args:
        runs: The finished runs. One whose checkpoint is gone is left out.
        options: Options of tools/test.py, which make the plan.
        plan: The severities of each corruption.
        seed: Of their random numbers.

    Raises:
        compare.RunFailed: a test ended with an error.
    """
    left = []
    for run in runs:
        if run.checkpoint is None:
            CONSOLE.print(f'{run.label}: not tested on corrupted images: its checkpoint is gone')
        elif not run.corrupted(plan, seed):
            left.append(run)
    number = 1 + sum(map(len, plan.values()))
    with progress(TextColumn('{task.completed}/{task.total}'), TimeRemainingColumn()) as bar:
        whole = bar.add_task('corrupted images', total=len(left), visible=bool(left))
        for run in left:
            task = bar.add_task(run.label, total=None)
            CONSOLE.print(f'{run.label}: {number} tests on clean and on corrupted images')
            run.corrupt(MIM / 'tools', options, plan, seed, lambda step, done, total, task=task, run=run: bar.update(
                task, description=f'{run.label}: corrupted images', completed=done, total=total))
            bar.remove_task(task)
            bar.advance(whole)
