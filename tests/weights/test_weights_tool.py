import runpy
import sys
from argparse import Namespace

import pytest
import torch
import torchvision

from mmlk.backbones import RepLKNet
from mmlk.weights.catalog import CATALOG, FAMILIES


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


def test_list_goes_by_family(tool):
    lines = tool('list').splitlines()
    titles = [line.strip() for line in lines if line.strip() in FAMILIES]
    assert titles == list(FAMILIES)
    title = ''
    for line in lines:
        title = line.strip() if line.strip() in FAMILIES else title
        name = line.split()[0] if line.strip() else ''
        assert name not in CATALOG or CATALOG[name] in FAMILIES[title]


def test_list_of_some(tool):
    shown = {line.split()[0] for line in tool('list', 'ConvNeXt', 'upernet').splitlines() if line.strip()}
    assert shown & set(CATALOG) == {name for name in CATALOG if name.startswith('upernet_convnext')}


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


def test_inspect_shows_no_control_codes(tool, tmp_path):
    """Whatever the file says, each line of what is printed is one of the tool's."""
    code = '\x1b[2J\x9b1m\u202e\r\nformat      forged'
    torch.save({'state_dict': {'w': torch.ones(2)}, 'meta': {f'a{code}': 1, 'b': code}, f'x{code}': 1,
                'args': Namespace(model=code), 'epoch': code, 'iter': (code, ), 'cfg': [code], 'config': {'k': code}},
               tmp_path / f'w{code}.pth')
    printed = tool('inspect', tmp_path / f'w{code}.pth')
    lines = printed.splitlines()
    assert printed.replace('\n', '').isprintable()
    assert [line.split()[0] for line in lines[1:]] == [
        'format', 'looks', 'tensors', 'parameters', 'first', 'last', 'meta', 'args', 'epoch', 'iter', 'cfg', 'config']
    assert r'beside args, cfg, config, epoch, iter, meta, ...' in lines[1]
    assert r'k=\x1b[2J\x9b1m\u202e\r\nformat      forged' in lines[-1]


def test_inspect_reads_other_toolboxes(tool, tmp_path):
    torch.save({'state_dict': torchvision.models.convnext_tiny().state_dict()}, tmp_path / 'w.pth')
    printed = tool('inspect', tmp_path / 'w.pth')
    assert "torchvision's ConvNeXt: 182 names translated" in printed
    assert 'looks like  ConvNeXt-T or ConvNeXtRoadmap-separate-downsampling\n' in printed
    assert 'first keys  features.0.0.weight' in printed


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
