"""What the tools tell a person: one message for what mmlk refuses, and no noise."""
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mmlk.cli.prepare import one_message, preflight, read_config
from mmlk.datasets.audit import points_fault
from mmlk.engine import DynamicSparsityHook
from mmlk.engine.hooks import MemoryFormatHook
from tests.engine.toy import config


def told(capsys, call):
    """The message that the program ended with."""
    with pytest.raises(SystemExit) as ended, one_message():
        call()
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_what_a_hook_refuses_is_one_message(capsys):
    """MemoryFormatHook's ValueError, and a TypeError, which mmengine gives anew with the hook's name."""
    model = SimpleNamespace()
    message = told(capsys, lambda: MemoryFormatHook().before_run(SimpleNamespace(model=model)))
    assert message == ('error: MemoryFormatHook sets the memory format of model.backbone; SimpleNamespace has none\n')

    hook = DynamicSparsityHook(sparsity=0.4)
    runner = SimpleNamespace(_hooks=[hook], optim_wrapper=None, model=model)
    message = told(capsys, lambda: Runner.call_hook(runner, 'before_train'))
    assert message.startswith('error: DynamicSparsityHook works with one optimizer, ') and message.count('\n') == 1


@pytest.mark.parametrize('error', [ValueError('x'), TypeError('x'), RuntimeError('x')])
def test_errors_of_others_keep_their_traceback(error):
    def call():
        raise error

    with pytest.raises(type(error)), one_message():
        call()


def test_a_bug_of_mmlk_keeps_its_traceback():
    """Within mmlk, but nothing that it refuses."""
    with pytest.raises(TypeError), one_message():
        points_fault([5], None, 3)


@pytest.mark.parametrize('dataset, loader, expected', [
    (dict(data_root='no/where'), {}, 'no folder no/where'),
    ({}, dict(sampler=dict(type='InfiniteSampler')), 'train_dataloader.sampler is InfiniteSampler, which never ends')])
def test_a_run_that_cannot_be_is_one_message_before_it_begins(dataset, loader, expected, tmp_path, capsys):
    """Files that are not there, and settings that contradict each other."""
    for folder, name in (('images', 'a.jpg'), ('labels', 'a.png')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    dataset = {**dict(type='BaseSegDataset', data_root=str(tmp_path), metainfo=dict(classes=('a', 'b')),
                      data_prefix=dict(img_path='images', seg_map_path='labels')), **dataset}
    cfg = Config(dict(default_scope='mmseg', train_cfg=dict(max_epochs=1),
                      train_dataloader=dict(loader, dataset=dataset)))
    assert expected in told(capsys, lambda: preflight(cfg, ('train', )))
    if loader:
        cfg.train_dataloader.sampler.type = 'DefaultSampler'
        preflight(cfg, ('train', ))


def test_the_console_is_spared_the_config(tmp_path, capsys):
    from mmlk.engine import ResumableRunner
    cfg = config(tmp_path)
    runner = ResumableRunner.from_cfg(cfg)
    runner.logger.info('a line of the run')
    runner.logger.info('paramwise_options -- stem.bias:weight_decay=0.0')
    shown = capsys.readouterr().out
    assert 'a line of the run' in shown and 'the whole config is in' in shown
    assert 'Config:\n' not in shown and 'Hooks will be executed' not in shown and 'train_dataloader' not in shown
    assert 'paramwise_options' not in shown
    (log, ) = tmp_path.glob('*/*.log')
    assert 'Config:\n' in log.read_text() and 'Hooks will be executed' in log.read_text()
    (path, ) = tmp_path.glob('*.py')
    assert f'the whole config is in {path}' in shown and Config.fromfile(str(path)).train_dataloader
    assert sum(isinstance(handler, logging.FileHandler) for handler in runner.logger.handlers) == 1


def test_classes_and_functions_in_a_config_are_written_as_paths(tmp_path):
    """As the log and each checkpoint have it, and as mmengine finds them when it reads the text again."""
    path, again = tmp_path / 'config.py', tmp_path / 'again.py'
    path.write_text('_base_ = []\nfrom mmengine.dataset import pseudo_collate\nfrom mmengine.hooks import EMAHook\n'
                    'class Own:\n    pass\n'
                    "a = dict(type=EMAHook, momentum=0.1)\nb = [dict(type=pseudo_collate), (EMAHook, 'x')]\n"
                    "c = {'not a name': pseudo_collate}\nd = dict(type=Own)\ndel EMAHook, Own, pseudo_collate\n")
    cfg = read_config(str(path))
    cfg.dump(str(again))
    hook, function = 'mmengine.hooks.ema_hook.EMAHook', 'mmengine.dataset.utils.pseudo_collate'
    text = Config.fromfile(str(again))
    assert dict(text.a) == dict(type=hook, momentum=0.1) and text.b == [dict(type=function), (hook, 'x')]
    assert text.c == {'not a name': function} and text.d.type.endswith('Own')
    assert isinstance(cfg.a.type, type) and cfg.d.type.__name__ == 'Own', 'the config itself keeps them'


@pytest.mark.parametrize('arguments, shown', [([], ''), (['-W', 'default'], 'DeprecationWarning: old')])
def test_warnings_of_toolboxes_are_not_shown(arguments, shown, repo):
    code = ('import warnings; from mmlk.cli.prepare import _hush; _hush(); import warnings as w; '
            'w.warn("old", DeprecationWarning); w.warn("`x` will be deprecated"); w.warn("old", FutureWarning); '
            'from mmlk.datasets.check import build_dataset; '
            'build_dataset(dict(type="BaseSegDataset", metainfo=dict(classes=("a", ))), "mmseg"); '
            'warnings.warn("news")')
    done = subprocess.run([sys.executable, *arguments, '-c', code], capture_output=True, text=True, cwd=repo)
    assert done.returncode == 0 and done.stdout == '' and 'UserWarning: news' in done.stderr, done.stderr
    assert (shown in done.stderr) and (shown or 'deprecated' not in done.stderr.lower())
