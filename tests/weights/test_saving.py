"""Weights as safetensors: the same tensors, the same report, and what the file says of itself."""
import json
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mmlk import __version__
from mmlk.backbones import RepLKNet
from mmlk.cli.prepare import find_checkpoint
from mmlk.engine.checkpoints import load_checkpoint
from mmlk.weights import WeightsError, load, save
from mmlk.weights.catalog import CATALOG
from mmlk.weights.fetch import cache_path
from mmlk.weights.loading import compare_weights
from mmlk.weights.read import read_metadata
from mmlk.weights.saving import replacing, settings
from tests.weights.conftest import TINY, Segmentor, assert_same, randomise, snapshot

CFG = '''
checkpoint_config = open_the_door()
model = dict(
    backbone=dict(arch='31B', init_cfg=dict(checkpoint='x'), norm_cfg=dict(type='BN'), out_indices=(0, 1),
                  type='mmlk.RepLKNet'),
    data_preprocessor=dict(bgr_to_rgb=True, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]))
'''


@pytest.fixture
def checkpoint(tmp_path):
    """A whole model after a training, with averaged weights: the average under state_dict, as EMAHook leaves it."""
    model = randomise(Segmentor(), seed=1)
    torch.save(dict(state_dict=model.state_dict(), ema_state_dict={'steps': torch.tensor(3)},
                    meta=dict(cfg=CFG, dataset_meta=dict(classes=('road', 'ü "x"'), palette=[[0, 0, 0]])),
                    optimizer=dict(state={0: torch.ones(3)})), tmp_path / 'iter_4.pth')
    return model, tmp_path / 'iter_4.pth'


def same_reports(module, one, other):
    """But for the order, which safetensors does not keep."""
    first, second = (vars(compare_weights(module, path, strict=False)[0]) for path in (one, other))
    for name in first.keys() - {'source', 'path', 'format'}:
        assert sorted(first[name]) == sorted(second[name]), name


def test_a_whole_model_comes_back(checkpoint, tmp_path):
    model, path = checkpoint
    saved = save(path, tmp_path / 'sub' / 'out.safetensors')
    assert saved.averaged and 'averaged weights' in str(saved)
    back = randomise(Segmentor(), seed=2)
    load(back, saved.path)
    assert_same(back.state_dict(), model.state_dict(), len(load_file(saved.path)))
    assert_same(load_checkpoint(find_checkpoint(saved.path)), snapshot(model))  # as a config's load_from and test.py
    for module in (Segmentor(), RepLKNet(TINY), RepLKNet(dict(TINY, layers=(1, 1, 3, 1)))):
        same_reports(module, path, saved.path)
    pretrained = RepLKNet(TINY, init_cfg=dict(type='mmlk.Pretrained', checkpoint=saved.path))
    pretrained.init_weights()
    assert_same(pretrained.state_dict(), model.backbone.state_dict())


def test_what_the_file_says(checkpoint, tmp_path):
    saved = save(checkpoint[1], tmp_path / 'o.safetensors', licence='MIT', source='made\nhere')
    assert read_metadata(saved.path) == saved.metadata
    said = dict(saved.metadata)
    backbone = json.loads(said.pop('backbone'))
    assert backbone == dict(arch='31B', norm_cfg=dict(type='BN'), out_indices=[0, 1], type='mmlk.RepLKNet')
    assert said.pop('arch').startswith('RepLKNet')
    assert {name: json.loads(said.pop(name)) for name in ('classes', 'mean', 'std')} == dict(
        classes=['road', 'ü "x"'], mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    assert said == dict(mmlk=__version__, format='pt', holds='whole model', channels='RGB', licence='MIT',
                        source=r'made\nhere')


def test_the_backbone_alone(checkpoint, tmp_path):
    model, path = checkpoint
    saved = save(path, tmp_path / 'b.safetensors', backbone_only=True)
    back = randomise(RepLKNet(TINY), seed=2)
    report = load(back, saved.path)
    assert_same(back.state_dict(), model.backbone.state_dict(), saved.tensors)
    assert not report.unexpected and saved.metadata['holds'] == 'backbone' and 'classes' not in saved.metadata


def test_a_backbone_of_another_toolbox_gets_our_names(tmp_path):
    """Names of a toolbox are told by its head, too, which is left out."""
    torchvision = pytest.importorskip('torchvision')
    theirs = torchvision.models.convnext_tiny().state_dict()
    torch.save(theirs, tmp_path / 'theirs.pth')
    from mmlk.backbones import ConvNeXt
    plain, ours = (save(tmp_path / 'theirs.pth', tmp_path / f'{only}.safetensors', only) for only in (False, True))
    assert_same(load_file(plain.path), theirs)
    first, second = ConvNeXt('T'), ConvNeXt('T')
    load(first, plain.path)
    report = load(second, ours.path)
    assert_same(second.state_dict(), first.state_dict())
    assert 'translated' not in report.format and ours.metadata['arch'].startswith('ConvNeXt-T')


def test_every_kind_of_tensor(tmp_path):
    """Shared and overlapping memory, other strides, dtypes, no elements and no dimensions: bit for bit."""
    base = torch.randn(4, 6)
    state = {
        'tied.a': base, 'tied.b': base, 'part': base[1:3], 'transposed': base.t(), 'strided': base[:, ::2],
        'expanded': base[:1].expand(5, 6), 'last': torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        'bf16': base.bfloat16(), 'half': base.half(), 'double': base.double(), 'fp8': base.to(torch.float8_e4m3fn),
        'bn.num_batches_tracked': torch.tensor(2**40), 'int8': torch.tensor([-1], dtype=torch.int8),
        'bool': torch.tensor([True, False]), 'complex': torch.randn(2, dtype=torch.complex64),
        'nan': torch.tensor([float('nan'), -0.0, float('inf')]), 'empty': torch.empty(0, 3), 'a/b \u00fc': base + 1,
        'parameter': torch.nn.Parameter(base.clone())}
    torch.save({'state_dict': state}, tmp_path / 'in.pth')
    saved = save(tmp_path / 'in.pth', tmp_path / 'ü b' / 'out file.safetensors')
    back = load_file(saved.path)
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].dtype == value.dtype and back[name].shape == value.shape, name
        assert back[name].contiguous().view(-1).view(torch.uint8).equal(
            value.detach().contiguous().view(-1).view(torch.uint8)), name


@pytest.mark.parametrize('value, said', [
    (torch.ones(2, 2).to_sparse(), 'w is sparse, quantized'), (torch.ones(2, device='meta'), 'w is sparse, quantized'),
    (torch.ones(2, dtype=torch.complex128), r'cannot be written .*complex128')])
def test_what_safetensors_does_not_hold(tmp_path, value, said):
    torch.save({'w': value, 'x': torch.ones(2)}, tmp_path / 'in.pth')
    (tmp_path / 'out.safetensors').write_bytes(b'old')
    with pytest.raises(WeightsError, match=said):
        save(tmp_path / 'in.pth', tmp_path / 'out.safetensors')
    assert (tmp_path / 'out.safetensors').read_bytes() == b'old'
    assert sorted(os.listdir(tmp_path)) == ['in.pth', 'out.safetensors']


def test_refusals(checkpoint, tmp_path):
    path = checkpoint[1]
    saved = save(path, tmp_path / 'o.safetensors', licence='MIT')
    torch.save({'epoch': 1}, tmp_path / 'none.pth')
    torch.save({'__metadata__': torch.ones(2)}, tmp_path / 'reserved.pth')
    (tmp_path / 'folder.safetensors').mkdir()
    (tmp_path / 'link.safetensors').symlink_to(saved.path)
    for source, out, options, said in [
            (path, 'out.pth', {}, 'out.pth must end in .safetensors'),
            (path, 'folder.safetensors', {}, 'is a folder'),
            (saved.path, 'o.safetensors', {}, 'is the checkpoint itself'),
            (saved.path, 'link.safetensors', {}, 'is the checkpoint itself'),
            (tmp_path / 'none.pth', 'x.safetensors', {}, 'holds no tensors'),
            (tmp_path / 'reserved.pth', 'x.safetensors', {}, 'named __metadata__'),
            (path, 'o.safetensors/x.safetensors', {}, 'cannot be written'),
            (saved.path, 'x.safetensors', dict(licence='GPL'), "known: 'MIT', not 'GPL'")]:
        with pytest.raises(WeightsError, match=said):
            save(source, tmp_path / out, **options)
    assert not (tmp_path / 'x.safetensors').exists() and not list(tmp_path.glob('.*'))


def test_saved_again_the_facts_stay(checkpoint, tmp_path):
    first = save(checkpoint[1], tmp_path / '1.safetensors', licence='MIT', source='here')
    second = save(first.path, tmp_path / '2.safetensors')
    assert second.metadata == first.metadata
    third = save(first.path, tmp_path / '3.safetensors', backbone_only=True)
    changed = {name for name, value in first.metadata.items() if third.metadata.get(name) != value}
    assert changed == {'holds', 'classes'}


def test_a_file_of_the_catalogue_brings_its_record(tmp_path, monkeypatch, trained):
    monkeypatch.setenv('MMLK_HOME', str(tmp_path))
    entry = next(entry for entry in CATALOG.values() if not entry.sha256 and entry.licence == 'MIT')
    name = entry.name
    cache_path(entry).parent.mkdir(parents=True)
    torch.save({'model': trained.state_dict()}, cache_path(entry))
    for source in (name, entry.url, cache_path(entry)):
        said = save(source, tmp_path / 'o.safetensors', licence='MIT').metadata
        assert (said['record'], said['licence'], said['source'], said['channels']) == (
            name, 'MIT', entry.source, entry.channels)
        assert json.loads(said['mean']) == list(entry.mean) and json.loads(said['std']) == list(entry.std)
    with pytest.raises(WeightsError, match="licence .* is known: 'MIT', not 'GPL'"):
        save(name, tmp_path / 'o.safetensors', licence='GPL')


def test_no_metadata_is_no_error(tmp_path, trained, capsys):
    from safetensors.torch import save_file
    save_file(trained.state_dict(), str(tmp_path / 'bare.safetensors'))
    saved = save(tmp_path / 'bare.safetensors', tmp_path / 'o.safetensors')
    assert {'mmlk', 'format', 'holds'} <= set(saved.metadata) and 'licence' not in saved.metadata
    assert 'not known: licence and source' in str(saved)


def test_others_may_read_the_file_as_the_umask_says(tmp_path, checkpoint):
    before = os.umask(0o022)
    try:
        saved = save(checkpoint[1], tmp_path / 'o.safetensors')
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(saved.path).st_mode) == 0o644


def test_two_writers_have_files_of_their_own(tmp_path):
    target = tmp_path / 'o.safetensors'
    with replacing(target) as one, replacing(target) as other:
        assert one != other and one.parent == other.parent == tmp_path
        one.write_text('one')
        other.write_text('other')
        assert not target.exists()
    assert target.read_text() == 'one' and os.listdir(tmp_path) == ['o.safetensors']


def test_a_folder_that_cannot_be_written(tmp_path, checkpoint, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr('pathlib.Path.touch', refuse)  # root may write everywhere
    with pytest.raises(WeightsError, match='o.safetensors cannot be written .*Permission denied'):
        save(checkpoint[1], tmp_path / 'o.safetensors')


@pytest.mark.parametrize('text, value', [
    ("a = dict(b=[1, (2, 'x')], c=dict(d=None), **{'e': 1})", None),
    ("a = dict(b=[1, (2, 'x')], c={'d-e': -1.5})", dict(b=[1, [2, 'x']], c={'d-e': -1.5})),
    ("a = __import__('os').system('x')", None), ('a = dict(b=open("x"))', None), ('a = [', None), ('b = 1', None),
    ('a = ' + '(' * 500 + ')' * 500, None), ('a = 1' + ' ' * 1_000_000, None)])
def test_the_text_of_a_config_is_not_run(text, value):
    assert settings(text, 'a') == value


def test_strange_facts_are_left_out(tmp_path, trained):
    for meta in (dict(cfg='model = dict(backbone=dict(type="A", x=b"1"), data_preprocessor=dict(mean="x", std=[1]))'),
                 dict(cfg='model = 3', CLASSES='ab'), dict(cfg=5, dataset_meta=dict(classes=[1])), [], 'x', None):
        torch.save({'state_dict': trained.state_dict(), 'meta': meta}, tmp_path / 'in.pth')
        said = save(tmp_path / 'in.pth', tmp_path / 'o.safetensors').metadata
        assert not {'backbone', 'classes', 'mean', 'std'} & set(said)


@pytest.mark.parametrize('change', [
    lambda data: data[:-4], lambda data: data[:40], lambda data: data + b'1234', lambda data: data[:8],
    lambda data: (10**7).to_bytes(8, 'little') + data[8:],
    lambda data: data.replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1),
    lambda data: data.replace(b'F32', b'F99', 1), lambda data: data.replace(b'"shape":[3', b'"shape":[9', 1)])
def test_damaged_files_are_refused(tmp_path, change):
    torch.save({'w': torch.ones(3), 'x': torch.ones(3)}, tmp_path / 'in.pth')
    saved = save(tmp_path / 'in.pth', tmp_path / 'o.safetensors')
    path = tmp_path / 'bad.safetensors'
    data = change(open(saved.path, 'rb').read())
    assert data != open(saved.path, 'rb').read()
    path.write_bytes(data)
    with pytest.raises(WeightsError, match='bad.safetensors'):
        save(path, tmp_path / 'p.safetensors')


def test_files_are_those_of_safetensors(checkpoint, tmp_path):
    with safe_open(save(checkpoint[1], tmp_path / 'o.safetensors').path, 'pt') as opened:
        assert opened.metadata()['format'] == 'pt'
