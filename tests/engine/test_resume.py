"""Runs that are killed at any moment go on as if they had not been, and checkpoints are whole or not there.

Processes are killed by SIGKILL at events of a run: each step, each batch of a validation, half of a file's bytes
written, before and after each renaming and each deletion. ``MMLK_KILLS`` sets how many kills each kind of run gets at
least (3 unless set).
"""
import json
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
from torch import nn

from mmlk.cli import prepare
from mmlk.engine import CheckpointError, CheckpointHook, ResumableRunner, checkpoints
from mmlk.engine.distributed import use_gloo
from mmlk.engine.resuming import find_resumable
from mmlk.reparam import merge
from tests.engine.toy import ToyMetric, ToyModel, config, die, forked, train, whole
from tests.utils import fill

KILLS = int(os.environ.get('MMLK_KILLS', 3))
AVERAGED = dict(type='EMAHook', momentum=0.1)
SPARSE = dict(type='mmlk.DynamicSparsityHook', module='', sparsity=0.5, prune_rate=0.5, update_frequency=3)
WITHIN = dict(by_epoch=True, checkpoint=dict(by_epoch=False, interval=3))  # checkpoints in the middle of epochs
KINDS = {
    'iterations': {},
    'iterations, workers': dict(workers=2),
    'epochs': dict(by_epoch=True),
    'epochs, workers': dict(by_epoch=True, workers=2),
    'within epochs, workers': dict(WITHIN, workers=2),
    'averages': dict(custom_hooks=[AVERAGED]),
    'masks that move': dict(custom_hooks=[SPARSE]),
    'gradients of two steps': dict(accumulated=2),  # checkpoints after 3 and 9
    'gradients of three steps, epochs of four': dict(accumulated=3, by_epoch=True),
    'averages, gradients of five steps, within epochs': dict(WITHIN, accumulated=5, custom_hooks=[AVERAGED]),
    'load_from': dict(load_from='start.pth'),
}


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
    changes = dict(KINDS[kind])
    if 'load_from' in changes:
        changes['load_from'] = str(tmp_path / 'start.pth')
        torch.save(fill(ToyModel(), seed=3).state_dict(), changes['load_from'])
    start = partial(config, **changes)
    assert forked(train, start(tmp_path / 'whole'), False, Events(log=tmp_path / 'events').watch) == 0
    expected, events = whole(tmp_path / 'whole'), (tmp_path / 'events').read_text().splitlines()
    assert len(expected) == 3 and len(events) > 40
    rng = random.Random(kind)
    kills, runs = 0, 0
    while kills < KILLS:
        work = tmp_path / f'killed{runs}'
        while True:
            fatal = rng.randrange(1, len(events) + 1)
            ended = forked(train, start(work), 'auto', Events(fatal).watch)
            there = whole(work) if work.exists() else {}  # every one of them can be read
            if ended == 0:
                break
            assert ended == signal.SIGKILL
            kills += 1
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
        with prepare.one_message():
            prepare.build_runner(cfg).train()
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


def stopped(work, fatal=11, **changes):
    """The work dir of a run that was killed before its ``fatal``-th step; its last checkpoint is two steps older."""
    def kill(runner):
        runner.register_hook(Steps(fatal))

    assert forked(train, config(work, **changes), False, kill) == signal.SIGKILL
    return work


def test_what_lacks_a_part_of_the_state_is_refused(run, tmp_path, capsys):
    work = tmp_path / 'work'
    shutil.copytree(run, work)
    (work / 'last_checkpoint').write_text(str(work / 'iter_12.pth'))
    best, = work.glob('best_*')
    error = refusal(config(work, load_from=str(best)), capsys)
    assert f'{best} does not hold the state of the optimizer and of the learning rate schedule' in error
    assert f'Resume from {work}/iter_12.pth, the last of this run; to start a new schedule' in error
    bare = shutil.copy(best, tmp_path)  # with nothing beside it
    assert 'Resume from another checkpoint of this run' in refusal(config(work, load_from=bare), capsys)
    cfg = config(work)
    cfg.param_scheduler = cfg.param_scheduler[:1]
    assert 'holds the state of 2 schedulers, and this config has 1. Resume with the config' in refusal(cfg, capsys)
    cfg.param_scheduler = None  # a schedule that was written and is not asked for is the config's business
    assert forked(train, cfg, True) == 0
    for lost, said in (('optimizer', 'the state of the optimizer, which'),
                       ('param_schedulers', 'the state of the learning rate schedule, which')):
        checkpoint = final(run)
        del checkpoint[lost]
        torch.save(checkpoint, work / 'iter_12.pth')
        assert said in refusal(config(work), capsys)


def test_averages_and_masks_are_not_taken_for_weights_nor_missed(run, tmp_path, capsys):
    for name, hook, said in (('averages', AVERAGED, 'a run with an EMAHook and holds its average in place of'),
                             ('masks', SPARSE, 'a run with a DynamicSparsityHook, and this config has none')):
        work = stopped(tmp_path / name, custom_hooks=[hook])
        assert said in refusal(config(work), capsys)
    shutil.copytree(run, tmp_path / 'plain')
    error = refusal(config(tmp_path / 'plain', custom_hooks=[AVERAGED]), capsys)
    assert 'is of a run without an EMAHook, and this config has one' in error


def test_gradients_between_updates_are_those_of_the_run(run, tmp_path, capsys):
    work = stopped(tmp_path / 'work', accumulated=2)
    checkpoint = final(work, 'iter_9.pth')
    held = checkpoint['gradients']
    assert held['accumulative_counts'] == 2 and any(value.any() for value in held['values'].values())
    assert final(work, 'iter_6.pth')['gradients'] == dict(accumulative_counts=2, values={})
    error = refusal(config(work, accumulated=3), capsys)
    assert 'gradients accumulated with accumulative_counts=2, and this config has 3' in error
    del checkpoint['gradients']
    torch.save(checkpoint, work / 'iter_9.pth')
    error = refusal(config(work, accumulated=2), capsys)
    assert 'iter_9.pth was written after 9 iterations, between two updates of accumulative_counts=2' in error
    # the end of a run is an update
    assert forked(train, config(tmp_path / 'ended', accumulated=5)) == 0
    assert not final(tmp_path / 'ended')['gradients']['values']
    assert forked(train, config(tmp_path / 'ended', accumulated=5), True) == 0


class Metrics(Hook):
    """Writes down what each validation gives."""

    def __init__(self, path):
        self.path = path

    def after_val_epoch(self, runner, metrics=None):
        with open(self.path, 'a') as file:
            print(json.dumps([runner.iter, metrics]), file=file)


def both(folder, resume, fatal=None):
    """Train two processes that share their gradients; each ends before a step, if it is given."""
    def process(rank):
        os.environ.update(RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME='lo')
        torch.distributed.init_process_group('gloo', f'file://{folder}/store{fatal}{resume}', rank=rank, world_size=2)
        cfg = config(folder / 'work', accumulated=4, launcher='pytorch', checkpoint=dict(save_best=None))
        use_gloo(cfg)
        train(cfg, resume, lambda runner: fatal and runner.register_hook(Steps(fatal)))

    folder.mkdir(exist_ok=True)
    first = os.fork()
    if not first:
        os._exit(abs(forked(process, 1)))
    ended = forked(process, 0)
    return ended, os.waitpid(first, 0)[1] and ended


def test_gradients_between_updates_are_those_of_all_processes(tmp_path):
    assert both(tmp_path / 'whole', False) == (0, 0)
    assert both(tmp_path / 'killed', False, fatal=11)[0] == signal.SIGKILL  # after the checkpoint at 9, of windows of 4
    assert both(tmp_path / 'killed', 'auto') == (0, 0)
    got, expected = (final(tmp_path / name / 'work') for name in ('killed', 'whole'))
    assert not same(got['optimizer'], expected['optimizer'])
    assert not [name for name in same(got['state_dict'], expected['state_dict']) if 'running' not in name]


@pytest.mark.parametrize('fatal, validated', [(7, [8, 12]), (11, [12])])
@pytest.mark.parametrize('changed', [dict(save_best=None), dict(save_best='other'), dict(rule='less')])
def test_another_best_than_before_keeps_the_file_of_the_old_one(changed, fatal, validated, run, tmp_path):
    work = stopped(tmp_path / 'work', fatal)
    old, = work.glob('best_score_*.pth')
    before = old.read_bytes()
    metrics = Metrics(tmp_path / 'metrics')
    assert forked(train, config(work, checkpoint=changed), 'auto', lambda runner: runner.register_hook(metrics)) == 0
    assert old.read_bytes() == before
    assert not same(final(work)['state_dict'], final(run)['state_dict'])
    assert not same(final(work)['optimizer'], final(run)['optimizer'])
    if not changed.get('save_best', 'score'):
        assert list(work.glob('best_*')) == [old]
        return
    metric, sign = changed.get('save_best', 'score'), -1 if 'rule' in changed else 1
    since = {step: sign * scores[metric] for step, scores in map(json.loads, metrics.path.read_text().splitlines())}
    assert list(since) == validated
    expected = f'best_{metric}_iter_{max(since, key=since.get)}.pth'
    assert {path.name for path in work.glob('best_*')} == {old.name, expected}


def start_file(path, model, **other):
    torch.save(dict(state_dict=fill(model, seed=3).state_dict(), **other), path)
    return str(path)


def test_training_starts_from_load_from_whole_or_not_at_all(tmp_path, capsys):
    """And says so before it builds its data."""
    def refused(name, state):
        torch.save(state, tmp_path / f'{name}.pth')
        cfg = config(tmp_path / 'work', load_from=str(tmp_path / f'{name}.pth'))
        cfg.train_dataloader.dataset.type = 'NoSuchData'
        with pytest.raises(SystemExit):
            with prepare.one_message():
                prepare.build_runner(cfg).train()
        return capsys.readouterr().err

    state = fill(ToyModel(), seed=3).state_dict()
    assert '4 of the 11 tensors of ToyModel were not filled' in refused('cut', {
        name: value for name, value in state.items() if not name.startswith('large') and 'running' not in name})
    assert 'stem.weight: 3x4x3x3 in the file, 4x4x3x3 in the module' in refused(
        'narrow', fill(ToyModel(channels=3)).state_dict())
    assert '1 tensors for which ToyModel has no place' in refused('more', {**state, 'head.scale': torch.ones(2)})
    merged = merge(ToyModel())
    assert merged.state_dict().keys() == state.keys()  # nothing to merge in it: a file of weights, for what follows
    path = start_file(tmp_path / 'weights.pth', ToyModel(), meta=dict(epoch=1, iter=2))
    assert 'weights.pth holds weights, not the state of a training run, so there is nothing to resume. To start from ' \
        'these weights, set load_from' in refusal(config(tmp_path / 'work', load_from=path), capsys)
    path = start_file(tmp_path / 'other.pth', nn.Linear(2, 2))
    assert 'there is nothing to resume. Nor can training start from them: ' in refusal(
        config(tmp_path / 'work', load_from=path), capsys)


class First(Hook):
    """Writes down what the first step starts from."""

    def __init__(self, path):
        self.path = path

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not self.path.exists():
            torch.save(dict(iter=runner.iter, state_dict=runner.model.state_dict()), self.path)


@pytest.mark.parametrize('resume', [False, 'auto'])
def test_classes_of_ones_own_and_all_else_of_load_from(resume, tmp_path):
    """An empty work dir with --resume is no other than without."""
    path = start_file(tmp_path / 'start.pth', ToyModel(classes=5), message_hub=dict(), meta=dict(), optimizer=dict())
    cfg = config(tmp_path / 'work', load_from=path, custom_hooks=[AVERAGED])
    assert forked(train, cfg, resume, lambda runner: runner.register_hook(First(tmp_path / 'first.pth'))) == 0
    first, start = (torch.load(tmp_path / f'{name}.pth')['state_dict'] for name in ('first', 'start'))
    for name, value in first.items():
        assert (value.shape != start[name].shape) if name.startswith('head') else torch.equal(value, start[name]), name
    log = log_of(tmp_path / 'work')
    assert re.search(r'2  for another number of classes, so left new\n +head\.weight\n +head\.bias', log)


def test_resumed_runs_no_longer_need_load_from(tmp_path):
    """Nor is it looked at: the file may be gone."""
    path = start_file(tmp_path / 'start.pth', ToyModel())
    work = stopped(tmp_path / 'work', fatal=5, load_from=path)
    assert forked(train, config(tmp_path / 'whole', load_from=path)) == 0
    os.remove(path)
    assert forked(train, config(work, load_from=path), 'auto') == 0
    assert not same(final(work), final(tmp_path / 'whole'))


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
    prepare.build_runner(cfg).train()


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
