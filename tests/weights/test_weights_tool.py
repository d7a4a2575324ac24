import runpy
import sys
from argparse import Namespace

import pytest
import torch

from mmlk.backbones import RepLKNet
from mmlk.weights.catalog import CATALOG


@pytest.fixture
def tool(repo, tmp_path, monkeypatch, capsys):
    """Run the tool as a command would; gives what it printed."""
    monkeypatch.setenv('MMLK_HOME', str(tmp_path / 'home'))

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['weights.py', *map(str, arguments)])
        runpy.run_path(str(repo / 'tools' / 'weights.py'), run_name='__main__')
        return capsys.readouterr().out
    return run


def test_list_names_every_entry(tool):
    printed = tool('list')
    for entry in CATALOG.values():
        line, = (line for line in printed.splitlines() if f' {entry.name} ' in line)
        assert (entry.sha256 or 'not known') in line and entry.pretraining in line and entry.note in line


def test_inspect(tool, tmp_path):
    model = RepLKNet('31B', out_indices=(0, ))
    torch.save({'model': model.state_dict(), 'epoch': 12,
                'args': Namespace(model='RepLKNet-31B', input_size=224)}, tmp_path / 'w.pth')
    printed = tool('inspect', tmp_path / 'w.pth')
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for said in ("'model' beside args, epoch", 'RepLKNet-31B, training form', f'parameters  {parameters:,}',
                 f'tensors     {len(model.state_dict())} (', 'first keys  stem.0.conv.weight',
                 'epoch       12', 'model=RepLKNet-31B, input_size=224'):
        assert said in printed, (said, printed)


def test_fetch_prints_the_path_of_what_is_there(tool, tmp_path):
    entry = next(entry for entry in CATALOG.values() if not entry.sha256)
    path = tmp_path / 'home' / 'weights' / f'{entry.name}.pth'
    path.parent.mkdir(parents=True)
    path.write_bytes(b'put here by hand')
    assert tool('fetch', entry.name).strip() == str(path)


def test_a_mistake_ends_in_one_line(tool):
    with pytest.raises(SystemExit, match='no weights') as error:
        tool('inspect', 'replknet-31B')
    assert isinstance(error.value.code, str) and '\n' not in error.value.code
