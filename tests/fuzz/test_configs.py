"""Config files of any content: read, or one error that names the file; what is not Python is refused, and runs nothing.
"""
import itertools
import pickle
import re

import mmengine
import pytest
import torch
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.fileio.handlers import file_handlers
from mmengine.runner import CheckpointLoader
from mmseg.models.losses.utils import get_class_weight

from mmlk.engine import checkpoints, config, handlers
from mmlk.cli.prepare import preflight, read_config
from mmlk.engine.loading import DataError
from mmlk.weights import WeightsError
from tests.conftest import REPO
from tests.fuzz.cases import cases
from tests.fuzz.test_weights import Call, calls
from tests.weights.test_fetch import server  # noqa: F401  (a fixture)

NUMBERS = itertools.count()  # of URLs, each of which is fetched once
DEMO = 'configs/demo/upernet_replknet-tiny_ade20k.py'


def refused(path) -> bool:
    """Whether the config cannot be read; the error names the file."""
    try:
        config.read_config_file(str(path))
    except config.ConfigError as error:
        assert str(path) in str(error)
        return True
    return False


@cases(40, suffix=st.sampled_from(['.json', '.yaml', '.py', '.toml', '']), content=st.binary(max_size=60))
def test_any_bytes(tmp_path, suffix, content):
    if suffix == '.py':  # it runs: no random programs here
        content = b'raise ' + content
    path = tmp_path / f'c{suffix}'
    path.write_bytes(content)
    assert refused(path) or suffix != '.py'


@cases(20, line=st.integers(1, 6), problem=st.sampled_from([
    '1 / 0', 'undefined', '[][3]', 'int("x")', '_base_ = ["no.py"]', '_base_ = 3', 'raise SystemExit', 'assert False',
    'def', 'open("no")']))
def test_programs_that_fail(tmp_path, line, problem):
    path = tmp_path / 'c.py'
    path.write_text('\n' * (line - 1) + problem)
    with pytest.raises(config.ConfigError, match=str(path)) as caught:
        config.read_config_file(str(path))
    assert f'line {line}' in str(caught.value) or '_base_' in problem


@cases(60, content=st.sampled_from([
    '{"model": {"type": "ResNet"}}', 'a: 1', 'a: !!python/object/apply:os.system ["touch MARK"]', '[]', '', '{',
    '{"_base_": "program.py"}', '{"custom_imports": {"imports": ["program"]}}',
    # by settings whose names do not say that anything is called: each of these ran, in mmseg or in mmengine
    '{"model": {"decode_head": {"loss_decode": {"type": "CrossEntropyLoss", "class_weight": "tag.yaml"}}}}',
    '{"custom_hooks": [{"type": "EMAHook", "ema_type": "torch.hub.load"}]}']),
    suffix=st.sampled_from(['.json', '.yaml', '.yml', '.JSON', '.Yaml']))
def test_a_config_that_is_not_python_is_refused_unread(tmp_path, monkeypatch, content, suffix):
    mark, path = tmp_path / 'ran', tmp_path / f'c{suffix}'
    (tmp_path / 'program.py').write_text(f'open({str(mark)!r}, "w")')
    (tmp_path / 'tag.yaml').write_text(f'!!python/object/apply:os.system ["touch {mark}"]')
    monkeypatch.syspath_prepend(tmp_path)
    path.write_text(content.replace('MARK', str(mark)))
    with pytest.raises(config.ConfigError) as error:
        config.read_config_file(str(path))
    said = str(error.value)
    assert f'{path}: a config must be a Python file' in said and 'can run any code' in said
    assert 'If you trust whoever made it, write it in Python: ' in said
    assert said.endswith(f"mmengine.Config.fromfile({str(path)!r}).dump('c.py')")
    assert not mark.exists()


@pytest.mark.parametrize('in_a_tool', [False, True])
@pytest.mark.parametrize('suffix', ['.json', '.yaml'])
def test_what_the_refusal_advises_works(request, tmp_path, suffix, in_a_tool):
    if in_a_tool:
        request.getfixturevalue('guarded')
    cfg = Config.fromfile(str(REPO / DEMO))
    cfg.dump(tmp_path / f'c{suffix}')
    with pytest.raises(config.ConfigError) as error:
        config.read_config_file(str(tmp_path / f'c{suffix}'))
    path, name = re.search(r"fromfile\('(.*?)'\)\.dump\('(.*?)'\)", str(error.value)).groups()
    Config.fromfile(path).dump(tmp_path / name)
    assert config.read_config_file(str(tmp_path / name)).model.backbone == cfg.model.backbone


@pytest.mark.parametrize('base', ['base.json', 'base.yaml', 'above.py'])
def test_a_base_that_is_not_python_is_refused_unread(tmp_path, base):
    mark = tmp_path / 'ran'
    (tmp_path / 'base.yaml').write_text(f'a: !!python/object/apply:os.system ["touch {mark}"]')
    (tmp_path / 'base.json').write_text('{"a": 1}')
    (tmp_path / 'above.py').write_text("_base_ = ['base.yaml']")
    (tmp_path / 'c.py').write_text(f"_base_ = ['{base}']")
    with pytest.raises(config.ConfigError, match=r'_base_ base\.(json|yaml) is not a Python file'):
        config.read_config_file(str(tmp_path / 'c.py'))
    assert not mark.exists()


@pytest.fixture
def guarded():
    """mmengine as the tools have it, in this test alone."""
    schemes, handlers_before = dict(CheckpointLoader._schemes), dict(file_handlers)
    checkpoints.guard()
    handlers.guard()
    yield
    CheckpointLoader._schemes = schemes
    file_handlers.update(handlers_before)


TAGS = ['!!python/object/apply:os.system ["touch MARK"]', '!!python/name:os.system', '!!python/module:antigravity',
        '!!python/object/new:os.mkdir ["MARK"]', '!!python/object/apply:eval ["open(\'MARK\', \'w\')"]']


@cases(40, tag=st.sampled_from(TAGS), depth=st.integers(0, 3), suffix=st.sampled_from(['yaml', 'yml']),
       legal=st.booleans())
def test_yaml_that_mmengine_reads_for_others_runs_nothing(guarded, tmp_path, tag, depth, suffix, legal):
    """mmseg reads the weights of classes by it, from a path or URL that a setting names."""
    mark, path = tmp_path / 'ran', tmp_path / f'x.{suffix}'
    content = '1.5' if legal else tag.replace('MARK', str(mark))
    for _ in range(depth):
        content = f'[{content}]'
    path.write_text(content)
    if legal:
        value = mmengine.load(str(path))
        for _ in range(depth):
            value, = value
        assert value == 1.5
        return
    for read in (mmengine.load, get_class_weight):
        with pytest.raises(DataError, match='cannot be read as plain data') as error:
            read(str(path))
        assert len(str(error.value).splitlines()) == 1
    assert not mark.exists()


@cases(20, name=st.sampled_from(sorted(calls(''))), suffix=st.sampled_from(['pkl', 'pickle']))
def test_pickles_that_mmengine_reads_for_others_are_refused(guarded, tmp_path, name, suffix):
    mark, path = tmp_path / 'ran', tmp_path / f'x.{suffix}'
    path.write_bytes(pickle.dumps([1, Call(*calls(str(mark))[name])]))
    with pytest.raises(DataError, match='a pickle .* is not read'):
        mmengine.load(str(path))
    mmengine.dump([1], str(path))
    assert pickle.loads(path.read_bytes()) == [1] and not mark.exists()


@cases(40, key=st.sampled_from(['model.backbone.type', 'train_cfg.max_iters', 'model', 'train_pipeline.0.type',
                                'train_pipeline.99.type', 'no.such.key', 'default_hooks.checkpoint', '', '.', 'a..b']),
       value=st.one_of(st.none(), st.integers(), st.text(max_size=3), st.dictionaries(st.text(max_size=2), st.none())))
def test_options(key, value, capsys):
    try:
        read_config(str(REPO / DEMO), {key: value})
    except SystemExit as end:
        assert end.code == 2 and 'error: --cfg-options do not fit' in capsys.readouterr().err


SERVED = ['http://', 'torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://']
NOT_SERVED = ['s3://', 'a:s3://', 'petrel://', 'a:petrel://', 'pavi://']


@cases(100, name=st.sampled_from(sorted(calls(''))), legacy=st.booleans(), key=st.sampled_from(['meta', 'optimizer']),
       source=st.sampled_from(['', *SERVED, *NOT_SERVED]))
def test_mmengine_too_runs_nothing_of_a_checkpoint(guarded, server, tmp_path, monkeypatch,  # noqa: F811
                                                   name, legacy, key, source):
    mark, path = tmp_path / 'ran', tmp_path / 'c.pth'
    torch.save({'state_dict': {'w': torch.ones(2)}, key: Call(*calls(str(mark))[name])}, path,
               _use_new_zipfile_serialization=not legacy)
    server.body = path.read_bytes()
    url = f'{server.url}&number={next(NUMBERS)}'
    monkeypatch.setenv('MMLK_HOME', str(tmp_path))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    for names in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(f'mmengine.runner.checkpoint.{names}', lambda: {'bad': url})
    wanted = {'': str(path), 'http://': url}.get(source, f'{source}bad')
    said = 'bad: weights are not fetched over' if source in NOT_SERVED else 'was refused'
    with pytest.raises(WeightsError, match=said):
        CheckpointLoader.load_checkpoint(wanted)
    assert not mark.exists()


def test_no_scheme_of_mmengine_escapes(guarded):
    assert all(loader is checkpoints.load_checkpoint for loader in CheckpointLoader._schemes.values())
    samples = ['', 'https://', *SERVED, *NOT_SERVED]
    assert set(CheckpointLoader._schemes) == {
        next(prefix for prefix in CheckpointLoader._schemes if re.match(prefix, sample)) for sample in samples}


@pytest.mark.parametrize('name', ['a.pkl', 'a.PICKLE', 'a.yaml', 'a.yml'])
@pytest.mark.parametrize('key', ['ann_file', 'proposal_file'])
def test_annotations_that_are_programs_are_refused(capsys, name, key):
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset={'type': 'A', key: name}))))
    with pytest.raises(SystemExit):
        preflight(cfg, ('train', ))
    assert f'train_dataloader.dataset.dataset.{key} is {name}, which runs code' in capsys.readouterr().err
