"""mmengine's own checkpoints under torch's restricted unpickler."""
import importlib.metadata
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from torch import serialization

from mmlk import _checkpoints

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
