"""The records against the configs, the page made of them, and the tool that keeps them together."""
import copy
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from mmlk.analysis import zoo
from mmlk.weights.catalog import CATALOG, entries

ROOT = Path(__file__).resolve().parent.parent
RECORDS = zoo.read(ROOT)
ROWS = {row['Name']: row for row in zoo.rows(RECORDS)}
KEYS = {'Name', 'In Collection', 'Config', 'Recipe', 'Metadata', *zoo.KINDS, 'Published', 'Weights', 'File'}
FILE = {'Arch', 'Page', 'SHA256', 'Image Size', 'Mean', 'Std', 'Channels', 'License', 'Note'}
FILES = {'Name', 'In Collection', 'Holds', 'Pretraining', 'Metrics', 'Source', 'Weights', *FILE}
COUNTED = ('mask_rcnn_resnet50_coco', 'upernet_replknet31b_ade20k', 'fcos_replknet31b_coco')


def config(row):
    return Config.fromfile(str(ROOT / row['Config']))


def test_the_index_names_every_record():
    """By a wildcard, which the index format knows; a new record is edited into no list."""
    patterns = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert [path for pattern in patterns for path in sorted(ROOT.glob(pattern))] == sorted(RECORDS)


def test_ours_come_before_baselines():
    ours = [record['Collections'][0]['Backbones'][0].startswith('mmlk.') for record in RECORDS.values()]
    assert ours == sorted(ours, reverse=True) and True in ours and False in ours


def test_every_config_has_one_row():
    assert sorted(row['Config'] for row in zoo.rows(RECORDS)) == sorted(
        path.relative_to(ROOT).as_posix() for folder in ('', 'pretrain/')
        for path in (ROOT / 'configs').glob(f'{folder}*.py'))
    assert all(Path(row['Config']).stem == name for name, row in ROWS.items())


@pytest.mark.parametrize('path', RECORDS, ids=lambda path: path.stem)
def test_collections(path):
    collections = {collection['Name']: collection for collection in RECORDS[path]['Collections']}
    assert {row['In Collection'] for row in RECORDS[path]['Models']} == set(collections)
    assert {file['In Collection'] for file in RECORDS[path].get('Files', [])} <= set(collections)
    assert set(RECORDS[path]) <= {'Collections', 'Files', 'Models'}
    assert all(set(file) <= FILES for file in RECORDS[path].get('Files', []))
    for collection in collections.values():
        assert collection['License'] and (collection.get('License Source') or collection['License'].startswith('none,'))
        assert collection['Paper']['Title'] and collection['Paper']['URL']
        assert collection['Backbones'] and collection['BibTeX'].startswith('@')
    names = [c['Name'] for metafile in RECORDS.values() for c in metafile['Collections']]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize('name', ROWS)
def test_a_row_says_what_its_config_says(name):
    row = ROWS[name]
    cfg = config(row)
    assert zoo.is_fresh(cfg, row), 'python tools/render_zoo.py --count'
    data = {'ade20k': 'ADE20K', 'cityscapes': 'Cityscapes', 'voc': 'Pascal VOC 2012', 'coco': 'COCO',
            'imagenet': 'ImageNet-1K'}
    assert row['Metadata']['Training Data'] == data[name.split('_')[-1].split('-')[0]]
    weights = row['Metadata'].get('Pretrained Weights')
    if weights in CATALOG:
        assert row['Metadata']['Pretraining'].startswith(CATALOG[weights].pretraining)
    elif weights and not weights.startswith(('http', 'torchvision://', 'open-mmlab://')):
        pytest.fail(f'{weights} is in no catalogue')


@pytest.mark.parametrize('name', ROWS)
def test_results_say_where_they_are_from(name):
    row = ROWS[name]
    assert set(row) <= KEYS
    for kind in zoo.KINDS:
        for result in row.get(kind, []):
            assert result['Dataset'] == row['Metadata']['Training Data'] and result['Task'] and result['Metrics']
            assert set(result['Metrics']) <= set(zoo.METRICS)
            assert kind == 'Results' or result['Source']
    assert ('Results' in row) == ('Published' in row)
    if 'Published' in row:
        assert row['Published']['Source']
    assert ('Weights' in row) == ('File' in row) and set(row.get('File', [])) <= FILE


@pytest.mark.parametrize('name', ROWS)
def test_a_config_repeats_no_published_figure(name):
    """Its comment has the source and what differs from it; figures are in the record."""
    row = ROWS[name]
    comment = ' '.join(line for line in (ROOT / row['Config']).read_text().splitlines() if line.startswith('#'))
    figures = {str(value) for result in row.get('Results', []) for value in result['Metrics'].values()}
    assert not figures & set(re.findall(r'\d+(?:\.\d+)?', comment))
    assert not re.search(r'\d (mIoU|box AP|mask AP|top-1)', comment)


def test_every_file_of_a_record_is_in_the_catalogue():
    files = [file['Name'] for record in RECORDS.values() for file in record.get('Files', [])]
    rows = [name for name, row in ROWS.items() if 'Weights' in row]
    assert sorted(files + rows) == sorted(CATALOG) and not set(files) & set(ROWS)
    for name in rows:
        row, entry = ROWS[name], CATALOG[name]
        metrics = {key: value for result in row['Results'] for key, value in result['Metrics'].items()}
        assert entry.url == row['Weights'] and entry.metrics == metrics and entry.channels == row['File']['Channels']


@pytest.mark.parametrize('change, said', [
    ({'Mean': None}, "x_in1k: there is no 'Mean'"), ({'In Collection': 'Nothing'}, "x_in1k: there is no 'Nothing'"),
    ({'Channels': 'GBR'}, 'x_in1k: Channels is RGB or BGR, got GBR'),
    ({'SHA256': 12345678}, 'x_in1k: sha256 must be text'),
])
def test_a_wrong_file_of_a_record_is_named(change, said):
    file = dict(copy.deepcopy(RECORDS[ROOT / 'configs' / 'metafiles' / 'gfnet.yml']['Files'][0]), Name='x_in1k')
    file = {key: value for key, value in {**file, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=re.escape(said)):
        entries({'Collections': [{'Name': 'GFNet', 'Backbones': ['mmlk.GFNet']}], 'Files': [file], 'Models': []})


@pytest.mark.parametrize('name', ROWS)
def test_published_sizes_are_what_we_count_or_the_row_says_why_not(name):
    row = ROWS[name]
    off = {figure for figure, published, ours in zoo.published_size(row) if not zoo.agrees(published, ours)}
    reasons = row.get('Published', {}).get('Differs', {})
    assert off == set(reasons) and all(reasons.values())


@pytest.mark.parametrize('name', COUNTED)
def test_counts_are_what_counting_gives(name):
    row = copy.deepcopy(ROWS[name])
    zoo.refresh(config(row), row)
    assert row == ROWS[name]


def test_the_page_is_not_stale():
    assert (ROOT / 'docs' / 'zoo.md').read_text() == zoo.render(RECORDS), 'python tools/render_zoo.py'


def test_records_are_laid_out_as_the_tool_writes_them():
    for path, record in RECORDS.items():
        assert zoo.dump(path, record) == path.read_text(), 'python tools/render_zoo.py'


def test_a_title_is_written_once_in_the_bibtex_entry(tmp_path):
    path = tmp_path / 'tiny.yml'
    path.write_text('# kept\n')
    bibtex = '@misc{key,\n  title = {A {ConvNet}},\n  year = {2020}\n}\n'
    record = {'Collections': [{'Name': 'Tiny', 'Paper': {'URL': 'https://a'}, 'BibTeX': bibtex}], 'Models': []}
    text = zoo.dump(path, record)
    assert text.startswith('# kept\nCollections:') and '    Title: A ConvNet\n    URL: https://a\n' in text
    assert '  BibTeX: |\n    @misc{key,\n' in text and yaml.safe_load(text)['Collections'][0]['BibTeX'] == bibtex
    with pytest.raises(ValueError, match='no line with a title'):
        zoo.title('@misc{key, year = {2020}}')


CONFIG = '''
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='mmlk.ConvNeXt', arch=dict(depths=(1, ), dims=(8, )), out_indices=(0, )),
    decode_head=dict(type='FCNHead', in_channels=8, in_index=0, channels=8, num_convs=0, concat_input=False,
                     num_classes=2))
train_cfg = dict(max_iters=7)
auto_scale_lr = dict(base_batch_size=3)
'''
COLLECTIONS = [{'Name': 'Tiny', 'License': 'MIT', 'Paper': {'Title': 'Tiny', 'URL': 'https://a'}}]
ROW = {'Name': 'upernet_tiny_ade20k', 'In Collection': 'Tiny', 'Config': 'configs/upernet_tiny_ade20k.py',
       'Metadata': {'Training Data': 'ADE20K', 'Pretraining': 'none', 'Input Size': '64x32'}}


@pytest.fixture
def small(tmp_path):
    """A folder with one config and its record."""
    (tmp_path / 'configs' / 'metafiles').mkdir(parents=True)
    (tmp_path / ROW['Config']).write_text(CONFIG)
    (tmp_path / 'configs' / 'metafiles' / 'tiny.yml').write_text(
        '# kept\n' + yaml.safe_dump({'Collections': COLLECTIONS, 'Models': [ROW]}, sort_keys=False))
    return tmp_path


@pytest.fixture
def run(small, monkeypatch, capsys):
    """Runs the tool on the folder; gives the exit code and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['render_zoo.py', '--root', str(small), *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / 'tools' / 'render_zoo.py'), run_name='__main__')
        return end.value.code, capsys.readouterr().out

    return call


def test_the_tool_counts_writes_and_then_is_content(small, run):
    code, output = run('--check')
    assert code == 1 and 'upernet_tiny_ade20k' in output and not (small / 'docs').exists()

    code, output = run('--count')
    assert code == 0 and '1/1 upernet_tiny_ade20k' in output
    text = (small / 'configs' / 'metafiles' / 'tiny.yml').read_text()
    metadata = yaml.safe_load(text)['Models'][0]['Metadata']
    assert text.startswith('# kept\n') and (metadata['Iterations'], metadata['Batch Size']) == (7, 3)
    # stem of 4x4, depthwise 7x7, two linear layers and the head's, all at stride 4, on a map of 8 x 16
    weights = 8 * 3 * 16 + 8 * 49 + 2 * 8 * 32 + 8 * 2
    rest = 8 + 8 + 32 + 8 + 2 + 3 * 16 + 8  # biases, three norms, layer scale
    assert (metadata['FLOPs'], metadata['Parameters']) == (8 * 16 * weights, weights + rest)
    page = (small / 'docs' / 'zoo.md').read_text()
    assert '(64x32)' in page and '[upernet_tiny_ade20k](../configs/upernet_tiny_ade20k.py)' in page
    assert run('--check') == run() == (0, '')

    (small / ROW['Config']).write_text(CONFIG.replace('depths=(1, )', 'depths=(2, )'))
    assert run('--check')[0] == run()[0] == 1
    assert run('--count')[0] == run('--check')[0] == 0
    (small / 'docs' / 'zoo.md').write_text(page.replace('single', 'double'))
    assert run('--check')[0] == 1 and 'double' in (small / 'docs' / 'zoo.md').read_text()
    assert run()[0] == 0 and 'double' not in (small / 'docs' / 'zoo.md').read_text()


def test_a_config_that_cannot_be_counted_does_not_stop_the_others(small, run):
    path = small / 'configs' / 'metafiles' / 'tiny.yml'
    other = {**ROW, 'Name': 'upernet_other_ade20k', 'Config': 'configs/upernet_other_ade20k.py'}
    path.write_text(yaml.safe_dump({'Collections': COLLECTIONS, 'Models': [other, ROW]}))
    (small / other['Config']).write_text(CONFIG.replace('mmlk.ConvNeXt', 'mmlk.Nothing'))
    code, output = run('--count')
    assert code == 1 and 'mmlk.Nothing' in output
    counted = {row['Name']: 'FLOPs' in row['Metadata'] for row in yaml.safe_load(path.read_text())['Models']}
    assert counted == {'upernet_other_ade20k': False, 'upernet_tiny_ade20k': True}


@pytest.mark.parametrize('text, said', [('{', 'cannot be read as YAML'), ('a: 1', "needs a list 'Models'"),
                                        ('\xff', 'cannot be read as YAML')])
def test_a_file_that_is_no_record_is_one_error(text, said, small, run):
    (small / 'configs' / 'metafiles' / 'tiny.yml').write_bytes(text.encode('latin-1'))
    code, _ = run()
    assert said in code and 'tiny.yml' in code and not (small / 'docs').exists()


def results(**metrics):
    return [{'Task': 'Semantic Segmentation', 'Dataset': 'ADE20K', 'Metrics': metrics, 'Source': 'here'}]


def records(row):
    return {Path('x'): {'Collections': COLLECTIONS, 'Models': [row]}}


def cells(row):
    table = zoo.render(records(row)).splitlines()
    [(place, line)] = [(i, line) for i, line in enumerate(table) if f"[{row['Name']}]" in line and '.py)' in line]
    return dict(zip(table[place - 2].strip('| ').split(' | '), line.strip('| ').split(' | ')))


def test_the_three_kinds_of_results_stay_apart():
    row = {**ROW, 'Results': results(**{'mIoU': 49.0, 'mIoU(ms+flip)': 50.25})}
    here = [kind for key, kind in zoo.KINDS.items() if key != 'Results']
    assert cells(row)['published'] == '49.0 / 50.25' and not set(here) & set(cells(row)), 'no empty columns'
    row = {**row, 'Weights': 'https://a/b.pth', 'Re-evaluated': results(mIoU=48.9), 'Trained Here': results(mIoU=12.5),
           'Metadata': {**ROW['Metadata'], 'Architecture': ['Tiny-X', 'UPerNet']}, 'Published': {'Source': 'a paper'},
           'File': {'Arch': 'X', 'Image Size': '32x32', 'Mean': [0, 0, 0], 'Std': [255, 255, 255], 'Channels': 'BGR',
                    'License': 'MIT'}}
    assert [cells(row)[kind] for kind in zoo.KINDS.values()] == ['[49.0 / 50.25](https://a/b.pth)', '48.9', '12.5']
    assert ('| [upernet_tiny_ade20k](https://a/b.pth) | X | UPerNet, ADE20K | none | 32x32 | mean 0, std 255, BGR | '
            'mIoU 49.0 ss, 50.25 ms | MIT | – |') in zoo.render(records(row))


def test_sizes_are_the_published_beside_ours():
    row = {**ROW, 'Published': {'Parameters (M)': 112, 'FLOPs (G)': 965.5}}
    row['Metadata'] = {**ROW['Metadata'], 'Parameters': 111_820_000, 'FLOPs': 963_500_000_000}
    assert cells(row)['published size'] == '112M / 965.5G' and cells(row)['counted here'] == '111.8M / 964G (64x32)'
    assert cells(ROW)['published size'] == cells(ROW)['counted here'] == '–'


def test_a_result_that_a_config_cannot_reach_says_why():
    row = {**ROW, 'Results': results(mIoU=49.0), 'Published': {'Source': 'a paper', 'Missed': 'it had more images'}}
    table = zoo.render(records(row))
    assert '- `upernet_tiny_ade20k`: it had more images.' in table and 'not expected to reach' in table
    assert 'not expected to reach' not in zoo.render(records(ROW))


def test_a_row_of_no_group_is_refused():
    row = {**ROW, 'Metadata': {**ROW['Metadata'], 'Training Data': 'Nowhere'}}
    with pytest.raises(ValueError, match='upernet_tiny_ade20k'):
        zoo.render(records(row))


@pytest.mark.parametrize('figure, ours, agree', [
    (100, 100.9, True), (100, 101.1, False), (20, 20.4, True), (20.0, 20.4, False), (2.0, 2.04, True)])
def test_published_figures_may_be_rounded(figure, ours, agree):
    assert zoo.agrees(figure, ours) is agree
