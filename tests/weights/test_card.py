"""The folder that ``mmlk weights push`` prepares: the file, and a card that tells published figures from measured."""
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import yaml

from mmlk.cli import main
from mmlk.weights import WeightsError, save
from mmlk.weights.card import METRICS, card, prepare_upload, upload
from mmlk.weights.catalog import CATALOG, FAMILIES, RECORDS, read_records
from mmlk.weights.read import read_metadata

RECORD = 'upernet_replknet31b_ade20k'
ROWS = {row['Name']: row for record in read_records(RECORDS).values()
        for row in [*(record.get('Files') or []), *record['Models']]}


@pytest.fixture
def file(tmp_path):
    torch.save({'backbone.w': torch.ones(2), 'decode_head.w': torch.ones(1)}, tmp_path / 'in.pth')
    return save(tmp_path / 'in.pth', tmp_path / 'ü a[1].safetensors', licence='MIT', source='a | b <i>').path


@pytest.fixture
def hub(monkeypatch):
    """What is asked of the Hub, by a client that asks nobody."""
    huggingface_hub = pytest.importorskip('huggingface_hub', reason='the extra hub is not installed')
    asked = []

    class FakeApi:

        def __init__(self, **options):
            asked.append(('HfApi', options))

        def create_repo(self, repo_id, **options):
            asked.append(('create_repo', repo_id, options))

        def upload_folder(self, **options):
            files = sorted(path.relative_to(options['folder_path']).as_posix()
                           for path in Path(options['folder_path']).rglob('*'))
            chosen = list(huggingface_hub.utils.filter_repo_objects(files, allow_patterns=options['allow_patterns']))
            asked.append(('upload_folder', options['repo_id'], chosen))
            return type('Commit', (), dict(commit_url='https://hub/commit/1'))

    monkeypatch.setattr(huggingface_hub, 'HfApi', FakeApi)
    return asked


def front(text):
    assert text.startswith('---\n')
    return yaml.safe_load(text.split('---\n')[1])


def test_published_figures_are_never_those_of_the_file():
    row = ROWS[RECORD]
    text = card({'arch': 'RepLKNet-31B'}, 'me/x', 'x.safetensors', 'MIT', RECORD, {'mIoU': 12.5})
    published = row['Results'][0]['Metrics']
    data = front(text)
    assert (data['license'], data['library_name'], data['datasets']) == ('mit', 'mmlk', ['ade20k'])
    assert 'mmlk' in data['tags'] and 'replknet' in data['tags'] and data['metrics'] == ['mean_iou']
    mine, *theirs = data['model-index'][0]['results']
    assert mine['metrics'] == [dict(type='mean_iou', name='mIoU (measured with this file)', value=12.5)]
    assert 'source' not in mine and mine['task']['type'] == 'image-segmentation'
    assert [result['metrics'][0] for result in theirs] == [
        dict(type='mean_iou', name=f'{name} (published, not measured with this file)', value=value)
        for name, value in published.items()]
    assert all(result['source'] == dict(name='Published: ' + row['Published']['Source'],
                                        url='https://github.com/DingXiaoH/RepLKNet-pytorch') for result in theirs)
    body = text.split('---\n', 2)[2]
    measured, _, published_part = body.partition('## Published figures, not measured with this file')
    assert '| ADE20K | mIoU | 12.5 | given with the upload |' in measured
    assert '49.9' not in measured and f'| ADE20K | mIoU | 49.9 | {row["Published"]["Source"]} |' in published_part
    assert '@inproceedings{ding2022scaling' in body and "load(model, 'hf-hub:me/x/x.safetensors')" in body


def test_every_record_makes_a_card_that_the_hub_reads(monkeypatch):
    hub = pytest.importorskip('huggingface_hub', reason='the extra hub is not installed')
    monkeypatch.setattr('mmlk.weights.card.read_records', lru_cache(read_records))  # else once for each card
    for name, row in ROWS.items():
        text = card({'arch': 'x'}, 'me/x', 'x.safetensors', 'MIT; conversion Apache-2.0', name)
        data = hub.ModelCard(text).data
        assert (data.license, data.license_name) == ('other', 'mit-conversion-apache-2.0')
        figures = list(row.get('Metrics', {}).values()) + [
            value for result in row.get('Results', []) for value in result['Metrics'].values()]
        assert [result.metric_value for result in data.eval_results or []] == figures, name
        assert all(result.source_name.startswith('Published: ') and result.source_url.startswith('https://')
                   and 'not measured with this file' in result.metric_name for result in data.eval_results or [])


def test_metrics_of_the_records_are_known():
    used = {name for row in ROWS.values() for metrics in [row.get('Metrics', {}), *(
        result['Metrics'] for result in row.get('Results', []))] for name in metrics}
    assert used <= set(METRICS)


def test_without_a_record_the_family_is_that_of_the_arch():
    for family in ('RepLKNet', 'ConvNeXt', 'UniRepLKNet'):
        text = card({'arch': f'{family}-31B, training form'}, 'me/x', 'x.safetensors', 'MIT')
        assert FAMILIES[family] and family.lower() in [tag.lower() for tag in front(text)['tags']]
        assert 'model-index' not in front(text) and '```bibtex' in text
    assert '```bibtex' not in card({}, 'me/x', 'x.safetensors', 'MIT')


def test_text_of_a_file_stays_text(file):
    """It ends no cell, no front matter and no line, and is no HTML."""
    hostile = 'x\n---\nlicense: mit\n| a | <script> `b` [c](d)'
    text = card(dict(arch=hostile, source=hostile, classes='["a|b", 3]', mmlk='1'), 'me/x', 'x.safetensors', hostile)
    assert text.count('\n---\n') == 1 and '<script>' not in text.split('---\n', 2)[2].replace('\\<', '')
    assert front(text)['license'] == 'other' and front(text)['license_name'].startswith('x-')
    assert '| Classes | a\\|b |' in text


def test_the_folder(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepared = prepare_upload(file, 'me/tiny')
    folder = tmp_path / 'work_dirs' / 'hub' / 'me' / 'tiny'
    assert prepared.folder.samefile(folder)
    assert sorted(path.name for path in folder.iterdir()) == ['README.md', 'ü a[1].safetensors']
    assert (folder / 'ü a[1].safetensors').read_bytes() == open(file, 'rb').read()
    assert r'| Source | a \| b \<i\> |' in (folder / 'README.md').read_text(encoding='utf-8')
    (folder / 'README.md').write_text('mine')
    assert prepare_upload(file, 'me/tiny').kept and (folder / 'README.md').read_text() == 'mine'
    again = prepare_upload(str(folder / 'ü a[1].safetensors'), 'me/tiny', new_card=True)
    assert not again.kept and (folder / 'README.md').read_text(encoding='utf-8').startswith('---\nlicense: mit')


@pytest.mark.parametrize('options, said', [
    (dict(repo='tiny'), 'no repository'), (dict(repo='../tiny'), 'no repository'),
    (dict(repo='a/b/c'), 'no repository'),
    (dict(record='none_such'), "no record in configs/metafiles has 'none_such'"),
    (dict(licence='GPL-3.0'), "known: 'MIT', not 'GPL-3.0'"),
    (dict(measured={'accuracy': 1.0}), "metric 'accuracy' is not known; there are Top 1"),
    (dict(measured={'mIoU': 101.0}, dataset='x'), 'in percent'),
    (dict(measured={'mIoU': float('nan')}, dataset='x'), 'in percent'),
    (dict(measured={'mIoU': 50.0}), 'need the name of their dataset')])
def test_refusals(file, tmp_path, options, said):
    with pytest.raises(WeightsError, match=said):
        prepare_upload(file, folder=str(tmp_path / 'out'), **{'repo': 'me/tiny', **options})
    assert not (tmp_path / 'out').exists()


def test_what_is_no_file_of_weights(tmp_path, file):
    torch.save({'w': torch.ones(2)}, tmp_path / 'p.safetensors')
    (tmp_path / 'bad.safetensors').write_bytes(open(file, 'rb').read()[:-4])
    unknown = save(tmp_path / 'in.pth', tmp_path / 'unknown.safetensors').path
    stated = save(tmp_path / 'in.pth', tmp_path / 'stated.safetensors', licence='not stated; distributed by x').path
    for path, said in ((tmp_path / 'p.safetensors', 'weights save. writes one'), (tmp_path / 'in.pth', 'writes one'),
                       (tmp_path / 'bad.safetensors', 'damaged'), (tmp_path / 'none.safetensors', 'no file'),
                       (unknown, 'it is not in the file.*--licence'), (stated, r'not known \(not stated')):
        with pytest.raises(WeightsError, match=said):
            prepare_upload(str(path), 'me/tiny', str(tmp_path / 'out'))
    assert prepare_upload(stated, 'me/tiny', str(tmp_path / 'out'), licence='MIT').repo == 'me/tiny'


def test_nothing_is_uploaded_unless_asked(file, tmp_path, hub, capsys):
    arguments = ['weights', 'push', file, 'me/tiny', '--out', str(tmp_path / 'out'), '--measured', 'mIoU=50',
                 '--dataset', 'ADE20K']
    main(arguments)
    printed = capsys.readouterr().out
    assert not hub and 'nothing was uploaded; --upload does' in printed
    assert f'{tmp_path / "out" / "README.md"}: read it' in printed and 'huggingface.co/me/tiny (public' in printed
    (tmp_path / 'out' / 'secret.txt').write_text('not mine to give')
    main([*arguments, '--upload', '--private'])
    assert [call[0] for call in hub] == ['HfApi', 'create_repo', 'upload_folder']
    assert hub[1][1:] == ('me/tiny', dict(private=True, exist_ok=True))
    assert hub[2][1:] == ('me/tiny', ['README.md', 'ü a[1].safetensors'])
    assert capsys.readouterr().out.endswith('uploaded: https://hub/commit/1\n')
    with pytest.raises(SystemExit, match='--measured takes METRIC=VALUE, got mIoU'):
        main([*arguments[:-4], '--measured', 'mIoU'])


def test_what_the_hub_refuses_is_one_line(file, tmp_path, hub, monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError('401 Unauthorized\nand more')
    prepared = prepare_upload(file, 'me/tiny', str(tmp_path / 'out'))
    monkeypatch.setattr(huggingface_hub.HfApi, 'create_repo', refuse)
    with pytest.raises(WeightsError, match=r'me/tiny cannot be uploaded \(OSError: 401 Unauthorized\).*hf auth login'):
        upload(prepared)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(WeightsError, match=r'pip install mmlk\[hub\]'):
        upload(prepared)


def test_save_and_push_by_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('MMLK_HOME', str(tmp_path))
    name = next(name for name, entry in CATALOG.items() if not entry.sha256 and entry.metrics)
    (tmp_path / 'weights').mkdir()
    torch.save({'w': torch.ones(2)}, tmp_path / 'weights' / f'{name}.pth')
    out = tmp_path / 'o.safetensors'
    main(['weights', 'save', name, str(out)])
    assert f'record    {name}' in capsys.readouterr().out and read_metadata(out)['licence'] == CATALOG[name].licence
    main(['weights', 'inspect', str(out)])
    assert f'record      {name}' in capsys.readouterr().out
    main(['weights', 'push', str(out), 'me/tiny', '--out', str(tmp_path / 'out')])
    data = front((tmp_path / 'out' / 'README.md').read_text(encoding='utf-8'))
    assert [result['metrics'][0]['value'] for result in data['model-index'][0]['results']] == list(
        CATALOG[name].metrics.values())
