"""Runs that are killed at any moment go on as if they had not been, and checkpoints are whole or not there.

Processes are killed by SIGKILL at events of a run: each step, each batch of a validation, half of a file's bytes
written, before and after each renaming and each deletion. ``MMLK_KILLS`` sets how many kills each kind of run gets at
least (4 unless set).
"""
import os
import random
import re
import resource
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.registry import METRICS

from mmlk.engine import CheckpointError, CheckpointHook, ResumableRunner, checkpoints, cli
from mmlk.engine.resuming import find_resumable
from tests.engine.toy import ToyMetric, ToyModel, config, die, forked, train, whole

KILLS = int(os.environ.get('MMLK_KILLS', 4))
KINDS = {'iterations': (False, 0), 'iterations, workers': (False, 2), 'epochs': (True, 0), 'epochs, workers': (True, 2)}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(ResumableRunner, '_log_env', lambda self, env: None)  # it asks compilers for their versions
    monkeypatch.setattr(Config, 'pretty_text', property(lambda self: str(self.to_dict())))  # yapf is slow


class Events(Hook):
    """Counts the events of a run; ends the process at one of them."""

    def __init__(self, fatal=None, count=0, log=None):
        self.fatal, self.count, self.log = fatal, count, log

    def __call__(self, name):
        self.count += 1
        if self.log:
            with open(self.log, 'a') as file:
                file.write(f'{name}\n')
        if self.count == self.fatal:
            die()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self('step')

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self('validation')

    def watch(self, runner):
        put, replace, delete = LocalBackend.put, os.replace, CheckpointHook._delete

        def watched_put(backend, data, path):
            Path(path).write_bytes(data[:len(data) // 2])
            self(f'half of {Path(path).name}')
            put(backend, data, path)

        def watched_replace(source, target):
            self(f'before {Path(target).name} is renamed')
            replace(source, target)
            self(f'after {Path(target).name} is renamed')

        def watched_delete(hook, path):
            self(f'before {Path(path).name} is deleted')
            delete(hook, path)
            self(f'after {Path(path).name} is deleted')

        LocalBackend.put, os.replace, CheckpointHook._delete = watched_put, watched_replace, watched_delete
        runner.register_hook(self)


class Steps(Hook):
    """Ends the process before a step."""

    def __init__(self, fatal):
        self.fatal = fatal

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.fatal:
            die()


def same(left, right, path=''):
    """Where two checkpoints differ in other than times and paths, and the log's own count of the iterations."""
    if isinstance(left, torch.Tensor):
        return [] if torch.equal(left, right) else [path]
    if hasattr(left, '_log_history'):
        return [] if (left._log_history == right._log_history).all() else [path]
    if isinstance(left, dict):
        ignored = ('time', 'cfg', 'experiment_name', 'mmengine_version', 'eta', 'last_ckpt', 'best_ckpt',
                   'replaced_best_ckpts')
        keys = [key for key in {**left, **right} if not str(key).endswith(ignored)
                and f'{path}.{key}' not in ('.message_hub.runtime_info.epoch', '.message_hub.runtime_info.iter')]
        return [fault for key in keys for fault in
                (same(left[key], right[key], f'{path}.{key}') if key in left and key in right else [f'{path}.{key}'])]
    if isinstance(left, (list, tuple)) and len(left) == len(right):
        return [fault for i, pair in enumerate(zip(left, right)) for fault in same(*pair, f'{path}[{i}]')]
    return [] if left == right else [f'{path}: {left} is not {right}']


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_killed_anywhere_ends_as_one_that_was_not(kind, tmp_path):
    by_epoch, workers = KINDS[kind]
    start = partial(config, by_epoch=by_epoch, workers=workers)
    assert forked(train, start(tmp_path / 'whole'), False, Events(log=tmp_path / 'events').watch) == 0
    expected, events = whole(tmp_path / 'whole'), (tmp_path / 'events').read_text().splitlines()
    assert len(expected) == 3 and len(events) > 40
    rng = random.Random(kind)
    kills, runs = 0, 0
    while kills < KILLS:
        work, resume = tmp_path / f'killed{runs}', False
        while True:
            fatal = rng.randrange(1, len(events) + 1)
            ended = forked(train, start(work), resume, Events(fatal).watch)
            there = whole(work) if work.exists() else {}  # every one of them can be read
            if ended == 0:
                break
            assert ended == signal.SIGKILL
            kills, resume = kills + 1, True
            if (work / 'last_checkpoint').exists():
                assert Path((work / 'last_checkpoint').read_text()).name in there
        runs += 1
        assert set(there) == set(expected) and not list(work.glob('*.unfinished'))
        for name, checkpoint in there.items():
            assert not same(checkpoint, expected[name]), f'{name} after {kills} kills'


def final(work, name='iter_12.pth'):
    return torch.load(work / name, weights_only=False)


def log_of(work):
    return max(work.glob('*/*.log'), key=lambda path: path.stat().st_mtime).read_text()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The work dir of an uninterrupted run."""
    work = tmp_path_factory.mktemp('run') / 'work'
    assert forked(train, config(work)) == 0
    return work


def test_samples_do_not_depend_on_the_number_of_workers(run, tmp_path):
    assert forked(train, config(tmp_path, workers=3)) == 0
    assert not same(final(tmp_path)['state_dict'], final(run)['state_dict'])
    assert forked(train, config(tmp_path / 'other', randomness=dict(seed=6))) == 0
    assert same(final(tmp_path / 'other')['state_dict'], final(run)['state_dict'])


@pytest.mark.parametrize('workers', [0, 2])
def test_a_run_killed_within_an_epoch_goes_on_within_it(workers, tmp_path):
    start = partial(config, by_epoch=True, workers=workers, checkpoint=dict(by_epoch=False, interval=3))
    assert forked(train, start(tmp_path / 'whole')) == 0
    for fatal, step in ((8, 6), (11, 9)):  # of three epochs of four
        work = tmp_path / str(fatal)

        def kill(runner):
            runner.register_hook(Steps(fatal))

        assert forked(train, start(work), False, kill) == signal.SIGKILL
        assert Path((work / 'last_checkpoint').read_text()).name == f'iter_{step}.pth'
        assert forked(train, start(work), True) == 0
        assert not same(final(work), final(tmp_path / 'whole'))


def test_without_a_seed_the_seed_of_the_run_is_taken(tmp_path):
    # Without a seed of the config's own, operators are measured, and round as the fastest does, unless told not to.
    start = partial(config, randomness=dict(seed=None, deterministic=True))
    kill = Steps(11)
    assert forked(train, start(tmp_path / 'work'), False, lambda runner: runner.register_hook(kill)) == signal.SIGKILL
    shutil.copytree(tmp_path / 'work', tmp_path / 'again')
    for name in ('work', 'again'):
        assert forked(train, start(tmp_path / name), True) == 0
    assert not same(final(tmp_path / 'work')['state_dict'], final(tmp_path / 'again')['state_dict'])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    place = data.find(torch.load(path, weights_only=False)['state_dict']['large.weight'].numpy().tobytes())
    assert place > 0
    data[place + 8] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = dict(truncated=truncate, damaged=flip, empty=lambda path: path.write_bytes(b''), missing=Path.unlink,
              text=lambda path: path.write_text('no checkpoint'))


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(damage, run, tmp_path):
    work = tmp_path / 'work'
    shutil.copytree(run, work)
    (work / 'last_checkpoint').write_text(str(work / 'iter_12.pth'))
    DAMAGE[damage](work / 'iter_12.pth')
    (work / 'iter_15.pth.unfinished').write_bytes(b'half')
    assert forked(train, config(work), True) == 0
    assert not same(final(work)['state_dict'], final(run)['state_dict'])
    log = log_of(work)
    assert 'resumed epoch: 0, iter: 9' in log
    assert damage == 'missing' or f'going on from {work}/iter_9.pth instead' in log and f'{work}/iter_12.pth' in log
    assert not list(work.glob('*.unfinished'))


def refusal(cfg, capsys):
    """What resuming ends with, on stderr; nothing in the work dir is touched."""
    def files():
        return {path.name: path.read_bytes() for path in Path(cfg.work_dir).glob('*') if path.suffix in ('.pth', '')
                and path.is_file()}
    before = files()
    cfg.resume = True
    with pytest.raises(SystemExit) as ended:
        with cli.one_message():
            cli.build_runner(cfg).train()
    assert ended.value.code == 2 and files() == before
    error = capsys.readouterr().err
    assert 'Traceback' not in error and error.count('error: ') == 1
    return error[error.index('error: '):]


def test_what_cannot_be_resumed_ends_in_one_message(run, tmp_path, capsys):
    work = tmp_path / 'work'
    shutil.copytree(run, work)
    (work / 'last_checkpoint').write_text(str(work / 'iter_12.pth'))
    error = refusal(config(work, channels=8), capsys)
    assert f'{work}/iter_12.pth is a checkpoint of another model than this config builds: ' in error
    assert 'stem.weight is (4, 4, 3, 3) in the file, (8, 4, 3, 3) in the model' in error and 'and 6 more' in error
    cfg = config(work)
    cfg.optim_wrapper.optimizer.weight_decay = 0.1
    cfg.optim_wrapper.paramwise_cfg = dict(norm_decay_mult=0.0)
    assert f'{work}/iter_12.pth does not fit the optimizer of this config' in refusal(cfg, capsys)
    torch.save(final(work)['state_dict'], work / 'weights.pth')
    assert 'weights.pth holds weights, not the state of a training run' in refusal(
        config(work, load_from=str(work / 'weights.pth')), capsys)
    flip(work / 'iter_12.pth')
    assert 'iter_12.pth cannot be read: truncated or damaged (Bad CRC-32' in refusal(
        config(work, load_from=str(work / 'iter_12.pth')), capsys)
    for path in work.glob('iter_*'):
        truncate(path)
    error = refusal(config(work), capsys)
    assert 'none of the checkpoints can be resumed from:' in error and error.count('is truncated') == 2


def test_a_damaged_checkpoint_is_not_replaced_by_one_of_a_run_before(run, tmp_path):
    work = tmp_path / 'work'
    shutil.copytree(run, work)
    shutil.copy(run / 'iter_12.pth', work / 'iter_99.pth')
    truncate(work / 'iter_12.pth')
    model = ToyModel()
    assert find_resumable(str(work), str(work), 'iter_{}.pth', model) == str(work / 'iter_9.pth')
    (work / 'last_checkpoint').unlink()
    assert find_resumable(str(work), str(work), 'iter_{}.pth', model) == str(work / 'iter_99.pth')


def changed(path, meta=None, **info):
    """Write into a checkpoint."""
    checkpoint = final(path.parent, path.name)
    checkpoint['message_hub']['runtime_info'].update(info)
    checkpoint['message_hub']['resumed_keys'].update(dict.fromkeys(info, True))
    checkpoint['meta'].update(meta or {})
    torch.save(checkpoint, path)


def best_of(run, work):
    """Copy a run, as it was when the validation after eight steps had been the best."""
    shutil.copytree(run, work)
    for path in work.glob('best_*'):
        path.unlink()
    (work / 'best_score_iter_8.pth').write_text('the best')
    return work / 'best_score_iter_8.pth'


def go_on(cfg):
    """As the tools do."""
    cfg.resume = True
    checkpoints.guard()
    cli.build_runner(cfg).train()


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


FLEXIBLE = dict(runner_type='FlexibleRunner', env_cfg=dict())
RUNNERS = [dict(), FLEXIBLE, dict(FLEXIBLE, custom_hooks=[dict(type='mmengine.CheckpointHook', by_epoch=False)])]


@pytest.mark.parametrize('kind', RUNNERS[:2], ids=['ours', 'flexible'])
def test_the_text_of_a_checkpoint_is_not_run(kind, run, tmp_path):
    shutil.copytree(run, tmp_path / 'work')
    path, mark = tmp_path / 'work' / 'iter_9.pth', tmp_path / 'ran'
    changed(path, dict(config=f'open({str(mark)!r}, "w")', cfg=f'open({str(mark)!r}, "w")'))
    cfg = config(tmp_path / 'work', load_from=str(path), **kind)
    cfg.resume = True
    assert forked(go_on if kind else train, *([cfg] if kind else [cfg, True])) == 0
    assert not mark.exists() and (tmp_path / 'work' / 'iter_12.pth').stat().st_mtime > path.stat().st_mtime


@pytest.mark.parametrize('kind', RUNNERS, ids=['ours', 'flexible', 'custom'])
def test_no_file_is_deleted_because_a_checkpoint_names_it(kind, run, tmp_path):
    """But those that this run has replaced, in its own folder."""
    work, other = tmp_path / 'work', tmp_path / 'other'
    best_of(run, work)
    mine = ['notes.pth', 'best_score_iter_99.pth', 'best_score_iter_4.txt', 'iter_4.pth.bak', 'notes.unfinished',
            'iter_100.pth']
    for folder, names in ((other, ['iter_3.pth', 'best_score_iter_4.pth', 'sub/file']), (work, mine)):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
    (work / 'iter_5.pth.unfinished').write_text('half')
    (work / 'best_score_iter_2.pth').write_text('replaced')
    (work / 'best_score_iter_4.pth').write_text('the best')
    (work / 'iter_6.pth').write_text('outdated')
    kept = files(other)
    changed(work / 'iter_9.pth', last_ckpt=str(other / 'iter_3.pth'), best_ckpt=str(other / 'best_score_iter_4.pth'),
            best_score=-10.0, last_validation=8,  # so that the next one is better
            keep_ckpt_ids=['../other/iter_3', '3/../../other/iter_3', 100, 4.0, True, None, [3], 6, 9],
            replaced_best_ckpts=[str(other), str(work), '..', '', 7, None, str(other / 'best_score_iter_4.pth'),
                                 f'best_score_iter_{"9" * 5000}.pth',
                                 *(str(work / name) for name in mine), str(work / 'best_score_iter_2.pth')])
    assert forked(go_on, config(work, load_from=str(work / 'iter_9.pth'), **kind)) == 0
    assert files(other) == kept
    assert all((work / name).read_text() == name for name in mine)
    assert (work / 'best_score_iter_12.pth').stat().st_size > 1000
    gone = ['iter_5.pth.unfinished', 'best_score_iter_2.pth', 'best_score_iter_4.pth', 'iter_6.pth']
    assert not [name for name in gone if (work / name).exists()]


def test_a_copy_of_a_run_leaves_the_run_as_it_is(run, tmp_path):
    best = best_of(run, tmp_path / 'run')
    changed(tmp_path / 'run' / 'iter_9.pth', best_ckpt=str(best), best_score=-10.0)
    shutil.copytree(tmp_path / 'run', tmp_path / 'work')
    before = files(tmp_path / 'run')
    assert forked(go_on, config(tmp_path / 'work', load_from=str(tmp_path / 'work' / 'iter_9.pth'))) == 0
    assert files(tmp_path / 'run') == before
    assert [path.name for path in (tmp_path / 'work').glob('best_*')] == ['best_score_iter_12.pth']


@METRICS.register_module()
class TwoScores(ToyMetric):
    """Has another score beside the toy's, which grows."""

    count = 0

    def compute_metrics(self, results):
        TwoScores.count += 1
        return dict(super().compute_metrics(results), other=-100.0 + TwoScores.count)


@pytest.mark.parametrize('save_best, made', [
    (None, []), ('other', ['best_other_iter_12.pth']),
    (['score', 'other'], ['best_other_iter_12.pth', 'best_score_iter_12.pth'])])
def test_with_another_save_best_the_best_checkpoint_stays(save_best, made, run, tmp_path):
    work = tmp_path / 'work'
    best = best_of(run, work)
    for path in list(work.glob('iter_*.pth')):  # of the last validation, which was not better
        changed(path, best_ckpt=str(best), best_score=1.0, replaced_best_ckpts=[str(best)])
    cfg = config(work, checkpoint=dict(save_best=save_best, rule=save_best and 'greater'),
                 val_evaluator=dict(type='TwoScores'), load_from=str(work / 'iter_9.pth'))
    assert forked(go_on, cfg) == 0
    assert sorted(path.name for path in work.glob('best_*')) == sorted([*made, best.name])


def test_resume_in_an_empty_folder_starts_a_run(run, tmp_path):
    assert forked(train, config(tmp_path / 'new'), True) == 0
    assert not same(final(tmp_path / 'new')['state_dict'], final(run)['state_dict'])


class Fills(Hook):
    """From an iteration on no file may grow past a limit, as on a full disk."""

    def __init__(self, size):
        self.size = size

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


def test_a_full_disk_ends_in_one_message_and_keeps_the_good_checkpoint(run, tmp_path):
    size = (run / 'iter_9.pth').stat().st_size // 2

    def work():
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # which pytest keeps in files, and the limit is theirs too
            os.dup2(nowhere, stream)
        try:
            train(config(tmp_path / 'work'), False, lambda runner: runner.register_hook(Fills(size)))
        except CheckpointError as error:
            (tmp_path / 'message').write_text(str(error))
            return
        raise AssertionError('no error')

    assert forked(work) == 0
    message = (tmp_path / 'message').read_text()
    assert re.search(r'iter_6\.pth could not be written: the disk is full. Earlier checkpoints are whole', message)
    assert set(whole(tmp_path / 'work')) == {'iter_3.pth', 'iter_4.pth', 'best_score_iter_4.pth'}
    assert not list((tmp_path / 'work').glob('*.unfinished'))
    assert forked(train, config(tmp_path / 'work'), True) == 0
    assert not same(final(tmp_path / 'work'), final(run))
