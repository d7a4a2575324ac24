"""The command ``mmlk``: what it offers, and that its help needs neither PyTorch nor OpenMMLab."""
import argparse
import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmlk import __version__
from mmlk.analysis import cam, latency
from mmlk.cli import COMMANDS, main, options, prepare
from mmlk.datasets.layouts import TOP_FOLDERS
from mmlk.deploy.formats import FORMATS
from mmlk.studies.gpu_check import SHARES

REPO = Path(__file__).resolve().parent.parent
TOOLS = sorted(path.stem for path in (REPO / 'tools').glob('*.py'))
CHECKOUT = {'render_zoo'}  # writes files of a checkout, and is no command


def help_of(capsys, run, *arguments):
    """What a command prints and ends with for ``--help``."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert not ended.value.code
    return capsys.readouterr().out


def test_every_tool_is_a_command():
    assert {command.name for command in COMMANDS.values()} == set(TOOLS) - CHECKOUT


@pytest.mark.parametrize('tool', TOOLS)
def test_tools_are_thin(tool):
    assert len((REPO / 'tools' / f'{tool}.py').read_text().splitlines()) <= 200


def test_the_overview_names_every_command(capsys):
    main(['--help'])
    out = capsys.readouterr().out
    assert re.findall(r'^  ([a-z][a-z-]+)  +(.+)$', out, re.MULTILINE) == [
        (name, command.summary) for name, command in COMMANDS.items()]
    main(['--version'])
    assert capsys.readouterr().out == f'mmlk {__version__}\n'


@pytest.mark.parametrize('arguments, message', [
    (['wieghts'], "error: there is no command 'wieghts'; did you mean weights? mmlk --help lists all commands"),
    (['shape_bias', 'x.py'], "error: there is no command 'shape_bias'; did you mean shape-bias? "
     'mmlk --help lists all commands'),
    (['--cfg-options'], "error: there is no command '--cfg-options'; mmlk --help lists all commands"),
    ([], 'error: mmlk needs a command; mmlk --help lists them'),
])
def test_an_unknown_command_is_one_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and capsys.readouterr().err == f'{message}\n'


@pytest.mark.parametrize('name', COMMANDS)
def test_a_tool_takes_what_its_command_takes(name, capsys, monkeypatch):
    """The same options with the same help; descriptions name the command as it was called."""
    script = f'{COMMANDS[name].name}.py'
    command = help_of(capsys, main, [name, '--help'])
    monkeypatch.setattr(sys, 'argv', [f'tools/{script}', '--help'])
    tool = help_of(capsys, runpy.run_path, str(REPO / 'tools' / script), None, '__main__')
    assert command.startswith(f'usage: mmlk {name} ') and tool.startswith(f'usage: {script} ')
    tool = tool.replace(f'python tools/{script}', f'mmlk {name}').replace(script, f'mmlk {name}')
    assert tool.split() == command.split()


HELP = '''
import sys
from mmlk.cli import COMMANDS, main
for arguments in [['--help'], ['--version'], *([name, '--help'] for name in COMMANDS), ['weights', 'list', 'RepLKNet'],
                  ['weights', 'inspect', '--help']]:
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, arguments
    heavy = {*sys.modules} & {'torch', 'timm', 'numpy', 'matplotlib', 'mmengine', 'mmcv', 'mmdet', 'mmseg'}
    assert not heavy, f'{arguments} imported {heavy}'
'''


def test_help_and_the_list_of_weights_import_nothing_heavy():
    done = subprocess.run([sys.executable, '-c', HELP], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert 'replknet-31b_in1k' in done.stdout


def test_choices_that_help_names_are_those_of_the_code():
    def command(name):
        return importlib.import_module(f'mmlk.cli.{name}')

    assert command('export').FORMATS == tuple(FORMATS)
    assert command('cam').METHODS == tuple(cam.METHODS)
    assert (command('benchmark').PARTS, command('benchmark').MODES) == (latency.PARTS, latency.MODES)
    assert command('compare').PARTS == latency.PARTS
    assert command('make_demo_data').LAYOUTS == tuple(sorted(TOP_FOLDERS))
    assert command('gpu_check').PARTS == tuple(SHARES)
    assert options.conventions('mmlk.analysis.latency').split() == latency.__doc__.split('\n\n', 1)[1].split()


def test_config_options_are_read_as_in_the_stock_tools():
    parser = argparse.ArgumentParser()
    options.add_config_options(parser)
    args = parser.parse_args(['--cfg-options', 'a.b=1', 'c=[(1,2),x]', '--cfg-options', 'd=None'])
    assert args.cfg_options == {'a.b': 1, 'c': [(1, 2), 'x'], 'd': None}


def test_models_of_one_command_and_their_names(capsys):
    args = SimpleNamespace(checkpoint='a.pth', names=None)
    prepare.add_models(args, 'model2', 'configs/a.b.py', [['timm:resnet50'], ['replknet-31b_in1k', 'b.pth']])
    assert args.models == [('configs/a.b.py', 'a.pth'), ('timm:resnet50', None), ('replknet-31b_in1k', 'b.pth')]
    assert args.names == ['a.b', 'resnet50', 'replknet-31b_in1k']
    prepare.add_models(args, 'model2', 'a.py', [])
    assert args.names == ['a.b', 'resnet50', 'replknet-31b_in1k']  # as given
    with pytest.raises(SystemExit):
        prepare.add_models(args, 'config2', 'a.py', [['b.py', 'b.pth', 'c.pth']])
    assert capsys.readouterr().err == (
        'error: --config2 takes a config and at most one checkpoint; give it once for every config\n')


@pytest.mark.parametrize('argv, line', [
    (['/usr/bin/mmlk', 'erf', 'a b.py'], "mmlk erf 'a b.py'"),
    (['tools/erf.py', 'a.py'], 'python tools/erf.py a.py'),
    (['/somewhere/mmlk/__main__.py', 'erf', 'a.py'], 'python -m mmlk erf a.py')])
def test_a_report_names_the_command_that_made_it(argv, line, monkeypatch):
    monkeypatch.setattr(sys, 'argv', argv)
    assert options.command_line() == line


def test_the_exit_code_is_that_of_the_command(tmp_path):
    """By ``python -m mmlk``: a part that does not exist, help, and a check that finds something."""
    def code(*arguments):
        return subprocess.run([sys.executable, '-m', 'mmlk', *map(str, arguments)], cwd=tmp_path, capture_output=True,
                              env={**os.environ, 'PYTHONPATH': str(REPO)}).returncode

    assert code('demo-data', '--help') == 0
    assert code('demo-data', '--layout', 'none', '--out', tmp_path) == 2
    assert code('weights', 'inspect', tmp_path / 'none.pth') == 1
