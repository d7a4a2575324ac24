"""What has no public name in Python and PyTorch: used in one file, and each name can be missing."""
import ast
import atexit
import re
import subprocess
import sys
from argparse import Namespace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmlk import _torch_private
from mmlk.weights import WeightsError
from mmlk.weights.read import read_weights

PACKAGE = Path(__file__).resolve().parent.parent / 'mmlk'


def _dotted(node):
    """'torch.a.b' of nested attributes of the name ``torch``, or of ``nn`` or ``F``; '' of anything else."""
    if isinstance(node, ast.Name):
        return {'torch': 'torch', 'nn': 'torch.nn', 'F': 'torch.nn.functional'}.get(node.id, '')
    inner = _dotted(node.value) if isinstance(node, ast.Attribute) else ''
    return inner and f'{inner}.{node.attr}'


def _private_names(path):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        names = []
        if isinstance(node, ast.Attribute):
            names = [_dotted(node)] if node.attr != '_run_exitfuncs' else [f'torch.{node.attr}']
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split('.')
            operator = name.startswith('torch.ops.')  # the name of an operator, not of a part of Python's interface
            if parts[0] == 'torch' and not operator and any(part.startswith('_') for part in parts[1:]) and (
                    not parts[-1].startswith('__')) or name.startswith('unittest'):
                yield f'{path.relative_to(PACKAGE)}: {name}'


def test_private_names_are_in_one_file():
    rooms = [path for path in PACKAGE.rglob('*.py') if path.relative_to(PACKAGE).parts[0] not in ('ops', 'reparam')]
    found = {name for path in rooms if path.name != '_torch_private.py' for name in _private_names(path)}
    assert not found
    assert list(_private_names(PACKAGE / '_torch_private.py'))  # they are recognised


def test_batch_norm():
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LazyBatchNorm2d)
    assert all(issubclass(kind, _torch_private.BatchNorm) for kind in kinds)
    assert not any(issubclass(kind, _torch_private.BatchNorm) for kind in (nn.InstanceNorm2d, nn.GroupNorm, nn.Module))


def test_instance_norm():
    kinds = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LazyInstanceNorm2d)
    assert all(issubclass(kind, _torch_private.InstanceNorm) for kind in kinds)
    assert not any(issubclass(kind, _torch_private.InstanceNorm) for kind in (nn.BatchNorm2d, nn.GroupNorm, nn.Module))


def test_dispatch_mode_without_the_private_module(monkeypatch):
    usual = _torch_private.dispatch_mode()
    monkeypatch.setitem(sys.modules, 'torch.utils._python_dispatch', None)
    assert _torch_private.dispatch_mode() is usual
    with FlopCounterMode(display=False) as counter:
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert counter.get_total_flops() == 48


LEAVE = '''
import logging.handlers, multiprocessing, sys, time, atexit
if sys.argv[2] == 'without':
    del atexit._run_exitfuncs
from mmlk.engine import distributed
log = logging.getLogger('x')
log.addHandler(logging.handlers.MemoryHandler(100, target=logging.FileHandler(sys.argv[1])))
log.warning('kept')
worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600, ))
worker.start()
print('said', worker.pid)
distributed._joined = True
distributed.leave()
'''


@pytest.mark.parametrize('name', ['with', 'without'])
def test_leaving_a_process(tmp_path, name):
    """Logs are written, output is flushed, and no worker stays; Python waits for workers that are no daemons, and so
    does the private function: here the worker is ended first where that is missing."""
    assert hasattr(atexit, '_run_exitfuncs')
    code = LEAVE if name == 'without' else LEAVE.replace('time.sleep, args=(600, )', 'time.sleep, args=(0.1, )')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(tmp_path / 'log'), name], text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith('said '), done.stderr[-2000:]
    assert (tmp_path / 'log').read_text() == 'kept\n'
    assert not Path(f'/proc/{done.stdout.split()[1]}').exists()


@pytest.mark.parametrize('legacy', [False, True])
def test_refused_types_when_the_error_has_other_words(tmp_path, legacy, monkeypatch):
    path = tmp_path / 'm.pth'
    content = dict(state_dict={'w': torch.ones(2)}, a=Fraction(1, 2), b=torch.float32, args=Namespace(depth=1))
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    messages = []
    for words in (_torch_private._REFUSAL, re.compile('other words')):
        monkeypatch.setattr(_torch_private, '_REFUSAL', words)
        with pytest.raises(WeightsError) as error:
            read_weights(path)
        messages.append(str(error.value))
        assert read_weights(path, allow_pickle=True)['a'] == Fraction(1, 2)
    assert messages[0] == messages[1] and 'fractions.Fraction' in messages[0]


@pytest.mark.parametrize('legacy', [False, True])
def test_no_type_is_refused_in_a_damaged_file(tmp_path, legacy, monkeypatch):
    monkeypatch.setattr(_torch_private, '_REFUSAL', re.compile('other words'))
    path = tmp_path / 'm.pth'
    torch.save({'w': torch.ones(200)}, path, _use_new_zipfile_serialization=not legacy)
    assert _torch_private.refused_types(path, 'an error') == []
    path.write_bytes(path.read_bytes()[:300])
    assert _torch_private.refused_types(path, 'an error') == []
