"""Config files of any content: read, or one error that names the file; what is not Python runs nothing."""
import json

import pytest
import torch
import yaml
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from mmlk.engine import checkpoints, config
from mmlk.engine.cli import preflight, read_config
from mmlk.weights import WeightsError
from tests.conftest import REPO
from tests.fuzz.cases import cases
from tests.fuzz.test_weights import Call, calls

DEMO = 'configs/demo/upernet_replknet-tiny_ade20k.py'


def plain(value):
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def settings() -> dict:
    return plain(Config.fromfile(str(REPO / DEMO)).to_dict())


SETTINGS = settings()


def text_of(content: object, suffix: str) -> str:
    return json.dumps(content) if suffix == '.json' else yaml.safe_dump(content, default_flow_style=True, width=10**6)


def refused(path) -> bool:
    """Whether the config cannot be read; the error names the file."""
    try:
        config.read(str(path))
    except config.ConfigError as error:
        assert str(path) in str(error)
        return True
    return False


@pytest.mark.parametrize('name', [DEMO, 'configs/demo/mask_rcnn_replknet-tiny_coco.py',
                                  'configs/upernet_slak-t_ade20k.py', 'configs/upernet_convnext-t_ade20k.py',
                                  'configs/pspnet_repvgg-b1g2-fast_cityscapes.py'])
@pytest.mark.parametrize('suffix', ['.json', '.yaml'])
def test_what_mmengine_dumps_is_read_back(tmp_path, name, suffix):
    """The same settings, and in pipelines the same types, without which transforms refuse them."""
    cfg = Config.fromfile(str(REPO / name))
    cfg.dump(tmp_path / f'c{suffix}')
    back = config.read(str(tmp_path / f'c{suffix}'))
    assert plain(back.to_dict()) == plain(cfg.to_dict())
    tuples = 0
    for pipeline in ('train_pipeline', 'test_pipeline'):
        for ours, theirs in zip(cfg[pipeline], back[pipeline]):
            for key, value in ours.items():
                if isinstance(value, (list, tuple)) and isinstance(value[0], (int, float)):
                    tuples += isinstance(value, tuple)
                    assert theirs[key] == value and type(theirs[key]) is type(value)
    assert tuples


@cases(60, suffix=st.sampled_from(['.json', '.yaml', '.yml']), place=st.floats(0, 0.999), length=st.integers(0, 40),
       put=st.text(st.sampled_from('{}[],:"\'!&*<- \n\tab0'), max_size=8))
def test_damaged_text(tmp_path, suffix, place, length, put):
    text = text_of(SETTINGS, suffix)
    at = int(place * len(text))
    path = tmp_path / f'c{suffix}'
    path.write_text(text[:at] + put + text[at + length:])
    refused(path)


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
        config.read(str(path))
    assert f'line {line}' in str(caught.value) or '_base_' in problem


def attacks(mark: str, suffix: str = '') -> dict:
    """By name, what makes mmengine run code as it reads, imports or builds: (text of YAML, or settings to put in)."""
    return {
        'tag': f'a: !!python/object/apply:os.system ["touch {mark}"]', 'name': 'a: !!python/name:os.system',
        'module': 'a: !!python/module:antigravity', 'new': f'a: !!python/object/new:os.mkdir ["{mark}"]',
        'eval': f"a: !!python/object/apply:eval [\"open('{mark}', 'w')\"]",
        'base': dict(_base_='program.py'), 'bases': dict(_base_=['base.json', 'program.py']),
        'import': dict(custom_imports=dict(imports=['program'])), 'imports': dict(custom_imports=['program']),
        'Popen': dict(model=dict(type='subprocess.Popen', args=['touch', mark])),
        'deep': dict(hooks=[dict(a=[dict(type='os.system', command=f'touch {mark}')])]),
        'call': dict(model=dict(type='mmengine.utils.call_command', cmd=['touch', mark])),
        'load': dict(model=dict(type='mmengine.load', file='tag.yaml')),
        'runner': dict(runner_type='subprocess.Popen'), 'scope': dict(default_scope='program'),
        'inner scope': dict(model=dict(_scope_='program', type='ResNet')), 'variable': dict(a='{{ fileDirname }}'),
        'pickle': dict(model=dict(init_cfg=dict(type='mmlk.Pretrained', checkpoint='x', allow_pickle=True))),
        'environment': dict(a='{{$ENV:HOME:x}}'), 'itself': dict(_base_=f'c{suffix}'),
    }


@cases(60, name=st.sampled_from(sorted(attacks(''))), suffix=st.sampled_from(['.json', '.yaml', '.yml']),
       whole=st.booleans())
def test_data_runs_nothing(tmp_path, monkeypatch, name, suffix, whole):
    mark = tmp_path / 'ran'
    (tmp_path / 'program.py').write_text(f'open({str(mark)!r}, "w")')
    (tmp_path / 'base.json').write_text('{"b": 1}')
    monkeypatch.syspath_prepend(tmp_path)
    content = attacks(str(mark), suffix)[name]
    path = tmp_path / f'c{suffix}'
    if isinstance(content, str):
        path = tmp_path / 'c.yaml'
        path.write_text(content)
    else:
        path.write_text(text_of({**(SETTINGS if whole else {}), **content}, suffix))
    assert refused(path) and not mark.exists()


@pytest.mark.parametrize('text, said', [
    ('a: &a [x, x]\n' + ''.join(f'{b}: &{b} [{", ".join([f"*{a}"] * 9)}]\n' for a, b in zip('abcdefgh', 'bcdefghi')),
     'more than 100,000 settings'),
    ('[' * 1000, 'cannot be read'), ('a: 1\nb: 2\na: 3\n', "the key 'a' stands twice"), ('- a\n- b\n', 'by name')])
def test_bombs_and_what_is_no_config(tmp_path, text, said):
    (tmp_path / 'c.yaml').write_text(text)
    with pytest.raises(config.ConfigError, match=said):
        config.read(str(tmp_path / 'c.yaml'))


def test_json_with_a_key_twice_and_a_base(tmp_path):
    (tmp_path / 'base.json').write_text('{"model": {"type": "A", "depth": 3}, "x": 1}')
    (tmp_path / 'c.json').write_text('{"_base_": "base.json", "model": {"depth": 4}}')
    assert config.read(str(tmp_path / 'c.json')).to_dict() == dict(model=dict(type='A', depth=4), x=1)
    (tmp_path / 'c.json').write_text('{"a": 1, "a": 2}')
    with pytest.raises(config.ConfigError, match="the key 'a' stands twice"):
        config.read(str(tmp_path / 'c.json'))


@cases(40, key=st.sampled_from(['model.backbone.type', 'train_cfg.max_iters', 'model', 'train_pipeline.0.type',
                                'train_pipeline.99.type', 'no.such.key', 'default_hooks.checkpoint', '', '.', 'a..b']),
       value=st.one_of(st.none(), st.integers(), st.text(max_size=3), st.dictionaries(st.text(max_size=2), st.none())))
def test_options(key, value, capsys):
    try:
        read_config(str(REPO / DEMO), {key: value})
    except SystemExit as end:
        assert end.code == 2 and 'error: --cfg-options do not fit' in capsys.readouterr().err


@cases(30, name=st.sampled_from(sorted(calls(''))), legacy=st.booleans(), key=st.sampled_from(['meta', 'optimizer']))
def test_mmengine_too_runs_nothing_of_a_checkpoint(tmp_path, name, legacy, key):
    mark = tmp_path / 'ran'
    path = tmp_path / 'c.pth'
    torch.save({'state_dict': {'w': torch.ones(2)}, key: Call(*calls(str(mark))[name])}, path,
               _use_new_zipfile_serialization=not legacy)
    before = dict(CheckpointLoader._schemes)
    try:
        checkpoints.guard()
        with pytest.raises(WeightsError, match=str(path)):
            CheckpointLoader.load_checkpoint(str(path))
    finally:
        CheckpointLoader._schemes = before
    assert not mark.exists()


@pytest.mark.parametrize('name', ['a.pkl', 'a.PICKLE', 'a.yaml', 'a.yml'])
@pytest.mark.parametrize('key', ['ann_file', 'proposal_file'])
def test_annotations_that_are_programs_are_refused(capsys, name, key):
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset={'type': 'A', key: name}))))
    with pytest.raises(SystemExit):
        preflight(cfg, ('train', ))
    assert f'train_dataloader.dataset.dataset.{key} is {name}, which runs code' in capsys.readouterr().err
