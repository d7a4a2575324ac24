"""The metafiles against the configs, the catalogue and the README, and the tool that keeps them together."""
import copy
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from mmlk.analysis import zoo
from mmlk.weights.catalog import CATALOG

ROOT = Path(__file__).resolve().parent.parent
METAFILES = zoo.read(ROOT)
ROWS = {row['Name']: row for row in zoo.rows(METAFILES)}
KEYS = {'Name', 'In Collection', 'Config', 'Metadata', *zoo.KINDS, 'Published', 'Weights', 'Catalogue'}
COUNTED = ('mask_rcnn_resnet50_coco', 'upernet_replknet31b_ade20k', 'fcos_replknet31b_coco')


def config(row):
    return Config.fromfile(str(ROOT / row['Config']))


def test_the_index_names_every_metafile():
    assert set(METAFILES) == set((ROOT / 'configs' / 'metafiles').glob('*.yml'))


def test_every_config_has_one_row():
    assert sorted(row['Config'] for row in zoo.rows(METAFILES)) == sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / 'configs').glob('*.py'))
    assert all(Path(row['Config']).stem == name for name, row in ROWS.items())


@pytest.mark.parametrize('path', METAFILES, ids=lambda path: path.stem)
def test_collections(path):
    collections = {collection['Name']: collection for collection in METAFILES[path]['Collections']}
    assert {row['In Collection'] for row in METAFILES[path]['Models']} == set(collections)
    for collection in collections.values():
        assert collection['License'] and collection['Paper']['Title'] and collection['Paper']['URL']
    names = [c['Name'] for metafile in METAFILES.values() for c in metafile['Collections']]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize('name', ROWS)
def test_a_row_says_what_its_config_says(name):
    row = ROWS[name]
    cfg = config(row)
    assert zoo.is_fresh(cfg, row), 'python tools/render_zoo.py --count'
    data = {'ade20k': 'ADE20K', 'cityscapes': 'Cityscapes', 'voc': 'Pascal VOC 2012', 'coco': 'COCO'}
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
        comment = ' '.join(line for line in (ROOT / row['Config']).read_text().splitlines() if line.startswith('#'))
        numbers = set(map(float, re.findall(r'\d+(?:\.\d+)?', comment)))
        assert {value for result in row['Results'] for value in result['Metrics'].values()} <= numbers, comment
    if 'Weights' in row:
        assert row['Results'] and row['Weights'].startswith('https://')
    if 'Catalogue' in row:
        entry = CATALOG[row['Catalogue']]
        assert row['Weights'] == entry.url and row['Metadata']['Pretraining'].startswith(entry.pretraining)
        for result in row['Results']:
            assert all(str(value) in entry.note for value in result['Metrics'].values()), entry.note


def test_every_trained_model_of_the_catalogue_with_a_config_is_in_its_row():
    trained = {name for name, entry in CATALOG.items() if entry.holds != 'classifier'}
    assert {name for name in ROWS if 'Catalogue' in ROWS[name]} >= trained & set(ROWS)


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


def test_the_readme_is_not_stale():
    readme = (ROOT / 'README.md').read_text()
    assert zoo.insert(readme, zoo.render(METAFILES)) == readme, 'python tools/render_zoo.py'


def test_metafiles_are_laid_out_as_the_tool_writes_them(tmp_path):
    for path, metafile in METAFILES.items():
        again = tmp_path / path.name
        again.write_text(path.read_text())
        zoo.write(again, metafile)
        assert again.read_text() == path.read_text()


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
ROW = {'Name': 'upernet_tiny_ade20k', 'In Collection': 'Tiny', 'Config': 'configs/upernet_tiny_ade20k.py',
       'Metadata': {'Training Data': 'ADE20K', 'Pretraining': 'none', 'Input Size': '64x32'}}


@pytest.fixture
def small(tmp_path):
    """A folder with one config, its metafile and a README."""
    (tmp_path / 'configs' / 'metafiles').mkdir(parents=True)
    (tmp_path / ROW['Config']).write_text(CONFIG)
    (tmp_path / 'model-index.yml').write_text('Import:\n- configs/metafiles/tiny.yml\n')
    (tmp_path / 'configs' / 'metafiles' / 'tiny.yml').write_text(
        '# kept\n' + yaml.safe_dump({'Collections': [{'Name': 'Tiny'}], 'Models': [ROW]}, sort_keys=False))
    (tmp_path / 'README.md').write_text(f'before\n{zoo.BEGIN}\nold\n{zoo.END}\nafter\n')
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
    assert code == 1 and 'upernet_tiny_ade20k' in output and 'old' in (small / 'README.md').read_text()

    code, output = run('--count')
    assert code == 0 and '1/1 upernet_tiny_ade20k' in output
    text = (small / 'configs' / 'metafiles' / 'tiny.yml').read_text()
    metadata = yaml.safe_load(text)['Models'][0]['Metadata']
    assert text.startswith('# kept\n') and (metadata['Iterations'], metadata['Batch Size']) == (7, 3)
    # stem of 4x4, depthwise 7x7, two linear layers and the head's, all at stride 4, on a map of 8 x 16
    weights = 8 * 3 * 16 + 8 * 49 + 2 * 8 * 32 + 8 * 2
    rest = 8 + 8 + 32 + 8 + 2 + 3 * 16 + 8  # biases, three norms, layer scale
    assert (metadata['FLOPs'], metadata['Parameters']) == (8 * 16 * weights, weights + rest)
    readme = (small / 'README.md').read_text()
    assert readme.startswith('before\n') and readme.endswith('after\n') and '(64x32)' in readme and 'old' not in readme
    assert run('--check') == run() == (0, '')

    (small / ROW['Config']).write_text(CONFIG.replace('depths=(1, )', 'depths=(2, )'))
    assert run('--check')[0] == run()[0] == 1
    assert run('--count')[0] == run('--check')[0] == 0
    (small / 'README.md').write_text(readme.replace('single', 'double'))
    assert run('--check')[0] == 1 and 'double' in (small / 'README.md').read_text()


def test_a_config_that_cannot_be_counted_does_not_stop_the_others(small, run):
    path = small / 'configs' / 'metafiles' / 'tiny.yml'
    other = {**ROW, 'Name': 'upernet_other_ade20k', 'Config': 'configs/upernet_other_ade20k.py'}
    path.write_text(yaml.safe_dump({'Models': [other, ROW]}))
    (small / other['Config']).write_text(CONFIG.replace('mmlk.ConvNeXt', 'mmlk.Nothing'))
    code, output = run('--count')
    assert code == 1 and 'mmlk.Nothing' in output
    counted = {row['Name']: 'FLOPs' in row['Metadata'] for row in yaml.safe_load(path.read_text())['Models']}
    assert counted == {'upernet_other_ade20k': False, 'upernet_tiny_ade20k': True}


def test_a_readme_without_markers_is_left_alone(small, run):
    (small / 'README.md').write_text('nothing')
    code, _ = run('--count')
    assert zoo.BEGIN in code and (small / 'README.md').read_text() == 'nothing'


def results(**metrics):
    return [{'Task': 'Semantic Segmentation', 'Dataset': 'ADE20K', 'Metrics': metrics, 'Source': 'here'}]


def cells(row):
    table = zoo.render({Path('x'): {'Models': [row]}}).splitlines()
    [line] = [line for line in table if row['Name'] in line and line.startswith('|')]
    return dict(zip(table[2].strip('| ').split(' | '), line.strip('| ').split(' | ')))


def test_the_three_kinds_of_results_stay_apart():
    row = {**ROW, 'Results': results(**{'mIoU': 49.0, 'mIoU(ms+flip)': 50.25})}
    assert [cells(row)[kind] for kind in zoo.KINDS.values()] == ['49.0 / 50.25', '–', '–']
    row = {**row, 'Weights': 'https://a/b.pth', 'Re-evaluated': results(mIoU=48.9), 'Trained Here': results(mIoU=12.5)}
    assert [cells(row)[kind] for kind in zoo.KINDS.values()] == ['[49.0 / 50.25](https://a/b.pth)', '48.9', '12.5']


def test_sizes_are_the_published_beside_ours():
    row = {**ROW, 'Published': {'Parameters (M)': 112, 'FLOPs (G)': 965.5}}
    row['Metadata'] = {**ROW['Metadata'], 'Parameters': 111_820_000, 'FLOPs': 963_500_000_000}
    assert cells(row)['published size'] == '112M / 965.5G' and cells(row)['counted here'] == '111.8M / 964G (64x32)'
    assert cells(ROW)['published size'] == cells(ROW)['counted here'] == '–'


def test_a_result_that_a_config_cannot_reach_says_why():
    row = {**ROW, 'Results': results(mIoU=49.0), 'Published': {'Source': 'a paper', 'Missed': 'it had more images'}}
    table = zoo.render({Path('x'): {'Models': [row]}})
    assert '- `upernet_tiny_ade20k`: it had more images.' in table and 'not expected to reach' in table
    assert 'not expected to reach' not in zoo.render({Path('x'): {'Models': [ROW]}})


def test_a_row_of_no_group_is_refused():
    row = {**ROW, 'Metadata': {**ROW['Metadata'], 'Training Data': 'Nowhere'}}
    with pytest.raises(ValueError, match='upernet_tiny_ade20k'):
        zoo.render({Path('x'): {'Models': [row]}})


@pytest.mark.parametrize('figure, ours, agree', [
    (100, 100.9, True), (100, 101.1, False), (20, 20.4, True), (20.0, 20.4, False), (2.0, 2.04, True)])
def test_published_figures_may_be_rounded(figure, ours, agree):
    assert zoo.agrees(figure, ours) is agree
