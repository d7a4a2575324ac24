"""mmengine's own checkpoints under torch's restricted unpickler."""
import copy
import importlib.metadata
import io
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from torch import serialization

from mmlk import _arrays, _checkpoints
from mmlk.engine import checkpoints
from mmlk.weights import WeightsError
from mmlk.weights.fetch import published_digest
from tests.conftest import REPO

pytestmark = pytest.mark.skipif(_checkpoints._release('torch') < (2, 6), reason='torch < 2.6 lists no pairs')


@pytest.fixture
def bare():
    """torch's allow-list empty, and put back afterwards."""
    before = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    yield
    serialization.clear_safe_globals()
    serialization.add_safe_globals(before)


@pytest.fixture
def allowed(bare, monkeypatch):
    """The allow-list as importing mmlk leaves it beside mmengine 0.10.7."""
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '0.10.7' if name == 'mmengine' else version(name))
    _checkpoints.allow_mmengine_types()


def logs():
    """What a checkpoint of mmengine holds beside weights."""
    hub = MessageHub('a run')
    for value in (3.0, 1.0, 2.0):
        hub.update_scalar('train/loss', value)
    hub.update_info('best', np.float64(0.5))
    hub.update_info('palette', np.arange(6, dtype=np.uint8).reshape(2, 3))
    return hub.state_dict()


def test_a_checkpoint_of_mmengine_is_read(allowed, tmp_path):
    torch.save(dict(message_hub=logs(), state_dict=dict(weight=torch.ones(2))), tmp_path / 'checkpoint.pth')
    loaded = torch.load(tmp_path / 'checkpoint.pth', weights_only=True)['message_hub']
    loss = loaded['log_scalars']['train/loss']
    assert isinstance(loss, HistoryBuffer)
    assert (loss.current(), loss.max(), loss.mean()) == (2.0, 3.0, 2.0)
    assert loss.statistics('min') == 1.0
    assert loaded['runtime_info']['best'] == 0.5
    assert np.array_equal(loaded['runtime_info']['palette'], [[0, 1, 2], [3, 4, 5]])
    again = MessageHub('another')
    again.load_state_dict(loaded)
    assert again.get_scalar('train/loss').current() == 2.0


class Asks:
    """A pickle that asks for an attribute."""

    def __init__(self, owner, name):
        self.asked = owner, name

    def __reduce__(self):
        return getattr, self.asked


@pytest.mark.parametrize('owner, name', [
    (HistoryBuffer, '__init__'), (HistoryBuffer, '__class__'), (HistoryBuffer, 'register_statistics'),
    (np.ndarray, 'tofile')])
def test_no_other_attribute_is_handed_out(allowed, tmp_path, owner, name):
    torch.save(dict(x=Asks(owner, name)), tmp_path / 'bad.pth')
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        torch.load(tmp_path / 'bad.pth', weights_only=True)


def test_mmengine_reads_its_own_once_mmlk_is_imported(tmp_path):
    """With whatever is installed, in a process of its own."""
    torch.save(dict(message_hub=logs(), state_dict={}), tmp_path / 'checkpoint.pth')
    code = ('import mmlk; from mmengine.runner import CheckpointLoader; '
            f'hub = CheckpointLoader.load_checkpoint({str(tmp_path / "checkpoint.pth")!r})["message_hub"]; '
            'print(hub["log_scalars"]["train/loss"].current())')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == '2.0', done.stderr[-2000:]


def test_arrays_and_logs_are_numpys_own_again_when_they_are_written(tmp_path):
    """What was read by the stand-ins can be changed, copied, written, and read by numpy and mmengine alone."""
    torch.save(dict(message_hub=logs(), state_dict={}), tmp_path / 'c.pth')
    loaded = checkpoints.load_checkpoint(str(tmp_path / 'c.pth'))['message_hub']
    loss, palette = loaded['log_scalars']['train/loss'], loaded['runtime_info']['palette']
    assert type(loss) is HistoryBuffer and type(loss.data[0]) is np.ndarray and type(palette) is _arrays.Array
    loss.update(5.0)
    assert loss.max() == 5.0 and loss.statistics('current') == 5.0
    palette[0, 0] = 7
    stream = io.BytesIO()
    torch.save(copy.deepcopy(loaded), stream)
    assert b'mmlk' not in stream.getvalue()
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    assert type(again['runtime_info']['palette']) is np.ndarray
    assert np.array_equal(again['runtime_info']['palette'], [[7, 1, 2], [3, 4, 5]])
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        copied = pickle.loads(pickle.dumps(palette, protocol))
        assert type(copied) is np.ndarray and np.array_equal(copied, palette)


class Named:
    """What mmengine is to look up names in."""

    def __init__(self, monkeypatch, path):
        monkeypatch.setenv('MMENGINE_HOME', str(path.parent))
        for name in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
            monkeypatch.setattr(f'mmengine.runner.checkpoint.{name}', lambda: {'a': path.name, 'none': None})
        monkeypatch.setattr('mmengine.runner.checkpoint.get_deprecated_model_names', lambda: {'old': 'a'})


def test_names_of_mmengine(monkeypatch, tmp_path):
    torch.save(dict(state_dict={'backbone.w': torch.ones(2), 'head.w': torch.zeros(1)}), tmp_path / 'x.pth')
    Named(monkeypatch, tmp_path / 'x.pth')
    for name in ('torchvision://a', 'modelzoo://a', 'open-mmlab://a', 'openmmlab://old'):
        assert list(checkpoints.load_checkpoint(name)['state_dict']) == ['backbone.w', 'head.w']
    assert list(checkpoints.load_checkpoint('mmcls://a')['state_dict']) == ['w']
    for name in ('torchvision://b', 'mmcls://none', 'open-mmlab://a/../b'):
        with pytest.raises(WeightsError, match=f'{name}: mmengine knows no weights of that name. Near names: '):
            checkpoints.load_checkpoint(name)


def test_names_in_configs_have_digests():
    """Those that mmengine is asked for by the configs here."""
    text = ''.join(path.read_text() for path in (REPO / 'configs').rglob('*.py'))
    found = set(re.findall(r"'([\w-]+)://([\w/-]+)'", text))
    assert len(found) >= 8
    for scheme, name in found:
        url = checkpoints._resolve(scheme, name)
        assert url.startswith('https://') and published_digest(url), (scheme, name)


def test_the_text_of_a_config_is_not_handed_on(tmp_path):
    torch.save(dict(state_dict={}, meta=dict(config='open("x")', epoch=1)), tmp_path / 'x.pth')
    assert checkpoints.load_checkpoint(str(tmp_path / 'x.pth'))['meta'] == dict(epoch=1)
