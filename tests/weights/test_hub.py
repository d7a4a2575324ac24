"""Files of the Hugging Face Hub: without a network, from a cache laid out as huggingface_hub lays it out."""
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from mmlk.backbones import RepLKNet
from mmlk.cli.prepare import find_checkpoint
from mmlk.engine.checkpoints import load_checkpoint
from mmlk.weights import WeightsError, fetch, hub, load
from tests.conftest import REPO
from tests.weights.conftest import TINY, assert_same

COMMITS = {'main': '0' * 40, 'v1': '1' * 40, 'refs/pr/1': '2' * 40, 'a/b': '3' * 40}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache's folder of me/tiny, with a commit for each reference; the network is not asked."""
    constants = pytest.importorskip('huggingface_hub', reason='the extra hub is not installed').constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hf' / 'hub'))
    repo = tmp_path / 'hf' / 'hub' / 'models--me--tiny'
    for reference, commit in COMMITS.items():
        (repo / 'refs' / reference).parent.mkdir(parents=True, exist_ok=True)
        (repo / 'refs' / reference).write_text(commit)
        (repo / 'snapshots' / commit / 'sub' / 'dir').mkdir(parents=True)
    return repo


def put(cache, state, reference='main', name='m.safetensors'):
    path = cache / 'snapshots' / COMMITS[reference] / name
    (save_file if path.suffix == '.safetensors' else torch.save)(state, str(path))
    return path


@pytest.mark.parametrize('source, reference, name', [
    ('hf-hub:me/tiny/m.safetensors', 'main', 'm.safetensors'),
    ('hf-hub:me/tiny/sub/dir/m@2.pth', 'main', 'sub/dir/m@2.pth'),
    ('hf-hub:me/tiny@v1/sub/m.safetensors', 'v1', 'sub/m.safetensors'),
    ('hf-hub:me/tiny@refs/pr/1/sub/m.safetensors', 'refs/pr/1', 'sub/m.safetensors'),
    ('hf-hub:me/tiny@refs%2Fpr%2F1/m.safetensors', 'refs/pr/1', 'm.safetensors'),
    ('hf-hub:me/tiny@a%2fb/m ü.safetensors', 'a/b', 'm ü.safetensors'),
    (f'hf-hub:me/tiny@{COMMITS["v1"]}/m.safetensors', 'v1', 'm.safetensors'),
])
def test_a_file_in_the_cache_is_loaded(cache, trained, fresh, source, reference, name):
    path = put(cache, trained.state_dict(), reference, name)
    report = load(fresh, source)
    assert (report.source, report.path) == (source, str(path))
    assert_same(fresh.state_dict(), trained.state_dict())
    assert find_checkpoint(source) == str(path)
    assert_same(load_checkpoint(source), trained.state_dict())  # as mmengine's load_from


def test_pretrained_takes_it(cache, trained):
    put(cache, trained.state_dict())
    model = RepLKNet(TINY, init_cfg=dict(type='mmlk.Pretrained', checkpoint='hf-hub:me/tiny/m.safetensors'))
    model.init_weights()
    assert_same(model.state_dict(), trained.state_dict())


def test_the_environment_says_where_and_offline(cache, tmp_path):
    """The tool, in a process of its own."""
    path = put(cache, {'w': torch.ones(2)})
    variables = {key: value for key, value in os.environ.items() if not key.startswith('HF_')}
    for source, code in (('hf-hub:me/tiny/m.safetensors', 0), ('hf-hub:me/other/m.safetensors', 1)):
        done = subprocess.run([sys.executable, '-m', 'mmlk', 'weights', 'fetch', source], cwd=REPO, text=True,
                              capture_output=True,
                              env={**variables, 'HF_HOME': str(tmp_path / 'hf'), 'HF_HUB_OFFLINE': '1'})
        assert done.returncode == code, done.stderr
        if code:
            assert done.stderr.splitlines() == [
                f'{source} cannot be had: it is not in the cache, {tmp_path / "hf" / "hub"}, and HF_HUB_OFFLINE is set']
        else:
            assert done.stdout.strip() == str(path)


class Runs:
    """A pickle that would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path, )


def test_a_pickle_of_the_hub_is_read_as_any_other(cache, tmp_path, fresh):
    put(cache, {'state_dict': {'w': torch.ones(2)}, 'x': Runs(str(tmp_path / 'ran'))}, name='m.pth')
    with pytest.raises(WeightsError, match='was refused'):
        load(fresh, 'hf-hub:me/tiny/m.pth')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('source, said', [
    ('hf-hub:', 'not of the form'), ('hf-hub:tiny', 'not of the form'), ('hf-hub://me/tiny/m', 'not of the form'),
    ('hf-hub:me/tiny', 'names no file'), ('hf-hub:me/tiny/', 'names no file'), ('hf-hub:me/tiny@v1', 'names no file'),
    ('hf-hub:me/tiny@/m.pth', "'' cannot be the revision"),
    ('hf-hub:me/tiny@../m.pth', "'..' cannot be the revision"),
    ('hf-hub:me/tiny@..%2F..%2Fx/m.pth', "'../../x' cannot be the revision"),
    ('hf-hub:me/tiny@%2Fetc/m.pth', "'/etc' cannot be the revision"),
    ('hf-hub:me/tiny/../../x.pth', "'../../x.pth' cannot be the file"),
    ('hf-hub:me/tiny/a/../m.pth', 'cannot be the file'), ('hf-hub:me/tiny//etc/passwd', 'cannot be the file'),
    ('hf-hub:me/tiny/..\\m.pth', 'cannot be the file'), ('hf-hub:me/tiny/m\0.pth', 'cannot be the file'),
    ('hf-hub:me/tiny/a\nb', 'cannot be the file'),
    ('hf-hub:../tiny/m.pth', "'../tiny' is no repository"), ('hf-hub:me/../m.pth', "'me/..' is no repository"),
    ('hf-hub:me--you/tiny/m.pth', 'is no repository'), ('hf-hub:me/tiny.git/m.pth', 'is no repository'),
    ('hf-hub:m e/tiny/m.pth', 'is no repository'), ('hf-hub:me/tinü/m.pth', 'is no repository'),
    (f'hf-hub:me/{"a" * 100}/m.pth', 'is no repository'),
])
def test_malformed_sources_are_refused(monkeypatch, source, said):
    monkeypatch.setattr(hub, 'INSTALL', 'never asked for')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)  # refused before it is imported
    with pytest.raises(WeightsError) as error:
        fetch.find(source)
    assert said in str(error.value) and 'never asked for' not in str(error.value)


@pytest.mark.parametrize('source', ['hf-hub:me/tiny/none.pth', 'hf-hub:me/tiny@v2/m.pth', 'hf-hub:me/none/m.pth'])
def test_what_is_not_in_the_cache(cache, source):
    with pytest.raises(WeightsError, match=r'cannot be had: it is not in the cache, .*hub, and HF_HUB_OFFLINE is set$'):
        fetch.find(source)


def test_a_folder_is_no_file(cache):
    with pytest.raises(WeightsError, match='is a folder; give a file in it'):
        fetch.find('hf-hub:me/tiny/sub/dir')


def test_answers_of_the_hub(cache, monkeypatch):
    """Each kind of refusal has one line that says what to do."""
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    for kind, said in [('GatedRepoError', 'grants access on request'), ('RepositoryNotFoundError', 'no repository me/'),
                       ('RevisionNotFoundError', 'no revision main'), ('RemoteEntryNotFoundError', 'no file m.pth at'),
                       ('LocalEntryNotFoundError', 'no network here$'), ('HfHubHTTPError', 'no network here$')]:
        made = type(kind, (getattr(huggingface_hub.errors, kind), ), {
            '__init__': lambda self: None, '__str__': lambda self: 'no network here\nand so on'})

        def refuse(*args, **kwargs):
            raise made()
        monkeypatch.setattr(huggingface_hub, 'hf_hub_download', refuse)
        with pytest.raises(WeightsError, match=f'hf-hub:me/tiny/m.pth cannot be had: .*{said}') as told:
            fetch.find('hf-hub:me/tiny/m.pth')
        assert '\n' not in str(told.value)


def test_the_package_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(WeightsError, match=r'hf-hub:me/tiny/m.pth needs .* pip install mmlk\[hub\]'):
        fetch.find('hf-hub:me/tiny/m.pth')


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'hf-hub:me' / 'tiny' / 'm.pth'
    path.parent.mkdir(parents=True)
    torch.save({'w': torch.ones(2)}, path)
    assert fetch.find('hf-hub:me/tiny/m.pth').samefile(path)
