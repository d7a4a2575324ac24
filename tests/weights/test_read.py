import os
import pickle
import sys
import types
import zipfile
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mmlk.weights import WeightsError
from mmlk.weights.read import StandIn, read_weights


def _run(path):
    """What a malicious file would call; it is importable, so nothing but the allow-list stops it."""
    with open(path, 'w') as file:
        file.write('ran')


class Malicious:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Config(dict):
    pass


class Settings:
    def __init__(self):
        self.depth = 3


def save(path, payload, legacy=False):
    torch.save(payload, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('function, name', [(_run, r'test_read\._run'), (os.system, r'posix\.system'),
                                            (eval, r'builtins\.eval')])
def test_a_malicious_file_is_refused_by_name_and_runs_nothing(tmp_path, legacy, function, name):
    mark = tmp_path / 'ran'
    argument = {_run: str(mark), os.system: f'touch {mark}', eval: f"open({str(mark)!r}, 'w')"}[function]
    payload = {'state_dict': {'w': torch.ones(2)}, 'meta': Malicious(function, argument)}
    path = save(tmp_path / 'm.pth', payload, legacy)
    with pytest.raises(WeightsError, match=name):
        read_weights(path)
    assert not mark.exists()


def test_what_others_allow_is_not_allowed_here_and_stays_allowed_for_them(tmp_path):
    """mmengine, or anything else in the process, may have put the same callable on torch's list."""
    mark = tmp_path / 'ran'
    path = save(tmp_path / 'm.pth', {'w': torch.ones(2), 'x': Malicious(_run, str(mark))})
    before = set(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals([_run])
    try:
        with pytest.raises(WeightsError, match='_run'):
            read_weights(path)
        assert not mark.exists()
        assert set(torch.serialization.get_safe_globals()) == before | {_run}
        torch.load(path, weights_only=True)
        assert mark.exists(), 'the file does nothing, so the refusal above proves nothing'
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(list(before))


def test_every_refused_type_is_named(tmp_path):
    path = save(tmp_path / 'm.pth', {'w': torch.ones(2), 'args': Namespace(), 'a': Settings(),
                                     'b': Malicious(_run, 'x'), 'c': np.float64(1)})
    with pytest.raises(WeightsError, match='allow_pickle=True') as error:
        read_weights(path)
    assert 'would run code of test_read.Settings, test_read._run, which is not' in str(error.value)


@pytest.mark.parametrize('legacy', [False, True])
def test_allow_pickle_builds_what_the_file_names(tmp_path, legacy):
    config = Config(a=1)
    path = save(tmp_path / 'm.pth', {'w': torch.ones(2), 'settings': Settings(), 'config': config,
                                     'args': Namespace(depth=1)}, legacy)
    payload = read_weights(path, allow_pickle=True)
    assert isinstance(payload['settings'], Settings) and payload['settings'].depth == 3
    assert payload['config'] == {'a': 1}
    assert isinstance(payload['args'], StandIn)
    # the word holds for one call
    with pytest.raises(WeightsError, match='Settings'):
        read_weights(path)


def test_allow_pickle_still_refuses_the_operating_system(tmp_path):
    mark = tmp_path / 'ran'
    path = save(tmp_path / 'm.pth', {'w': torch.ones(2), 'x': Malicious(os.system, f'touch {mark}')})
    with pytest.raises(WeightsError, match=r'posix\.system'):
        read_weights(path, allow_pickle=True)
    assert not mark.exists()


def test_allow_pickle_names_a_type_that_is_not_installed(tmp_path, monkeypatch):
    module = types.ModuleType('a_lost_package')
    module.Thing = type('Thing', (), {'__module__': 'a_lost_package'})
    monkeypatch.setitem(sys.modules, 'a_lost_package', module)
    path = save(tmp_path / 'm.pth', {'w': torch.ones(2), 'x': module.Thing()})
    monkeypatch.delitem(sys.modules, 'a_lost_package')
    with pytest.raises(WeightsError, match=r'a_lost_package\.Thing.*install'):
        read_weights(path, allow_pickle=True)


@pytest.mark.parametrize('legacy', [False, True])
def test_what_training_scripts_leave_beside_weights_is_read_past(tmp_path, legacy):
    weights = OrderedDict(w=torch.arange(6.).reshape(2, 3), half=torch.ones(3, dtype=torch.bfloat16))
    payload = {'model': weights, 'args': Namespace(model='RepLKNet-31B', input_size=224),
               'best': np.float64(83.5), 'palette': np.zeros((3, 3), np.uint8), 'epoch': 7}
    got = read_weights(save(tmp_path / 'm.pth', payload, legacy))
    assert got['epoch'] == 7
    assert isinstance(got['args'], StandIn)
    assert got['args'].state == {'model': 'RepLKNet-31B', 'input_size': 224}
    assert isinstance(got['best'], StandIn) and isinstance(got['palette'], StandIn)
    for key, value in weights.items():
        assert torch.equal(got['model'][key], value) and got['model'][key].dtype == value.dtype


def test_old_numpy_names_are_read_past(tmp_path):
    """Files written with numpy 1 say numpy.core where numpy 2 says numpy._core, and differ only there."""
    path = save(tmp_path / 'm.pth', {'w': torch.ones(2), 'best': np.float32(1.5)})
    with zipfile.ZipFile(path) as archive:
        records = {item: archive.read(item) for item in archive.namelist()}
    key, = (item for item in records if item.endswith('data.pkl'))
    assert (b'numpy._core' in records[key]) != (b'numpy.core' in records[key])
    for old, new in ((b'numpy._core', b'numpy.core'), (b'numpy.core', b'numpy._core')):
        other = tmp_path / 'other.pth'
        with zipfile.ZipFile(other, 'w') as archive:
            for item, data in records.items():
                archive.writestr(item, data.replace(old, new) if item == key else data)
        assert isinstance(read_weights(other)['best'], StandIn)


@pytest.mark.parametrize('kept', [0, 5, 60, 0.5, 0.95])
@pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors'])
def test_truncated_files_end_in_one_error(tmp_path, kind, kept):
    path, tensors = tmp_path / 'm', {f'layer{i}.weight': torch.randn(40, 50) for i in range(4)}
    if kind == 'safetensors':
        from safetensors.torch import save_file
        save_file(tensors, str(path))
    else:
        save(path, tensors, legacy=kind == 'legacy')
    data = path.read_bytes()
    assert read_weights(path).keys() == tensors.keys()
    path.write_bytes(data[:int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(WeightsError, match=str(path)):
        read_weights(path)


@pytest.mark.parametrize('content, said', [
    (b'', 'empty'),
    (b'<!DOCTYPE html><html><body>quota exceeded</body></html>', 'web page'),
    (b'\n  <html>', 'web page'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n', 'git-lfs'),
    (b'\x1f\x8b\x08\x00 some gzip', 'neither a file of torch.save nor safetensors'),
    (pickle.dumps({'w': [1, 2]}, protocol=4), 'not a plain weights file'),
])
def test_other_files_are_called_what_they_are(tmp_path, content, said):
    path = tmp_path / 'm.pth'
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        read_weights(path)


def test_an_archive_that_is_not_torchs(tmp_path):
    np.savez(tmp_path / 'm.npz', w=np.ones(3))
    with pytest.raises(WeightsError, match='cannot be read'):
        read_weights(tmp_path / 'm.npz')


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_torchscript_program(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / 'm.pt'))
    with pytest.raises(WeightsError, match='TorchScript program, not weights'):
        read_weights(tmp_path / 'm.pt')


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(WeightsError, match='there is no file'):
        read_weights(tmp_path / 'no.pth')
    with pytest.raises(WeightsError, match='folder'):
        read_weights(tmp_path)


def test_safetensors_not_installed(tmp_path, monkeypatch):
    from safetensors.torch import save_file
    save_file({'w': torch.ones(2)}, str(tmp_path / 'm.safetensors'))
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(WeightsError, match='pip install safetensors'):
        read_weights(tmp_path / 'm.safetensors')
