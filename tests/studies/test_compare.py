"""Comparisons: statistics against numpy, what is done is kept, and every number says where it comes from."""
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmlk.analysis import zoo
from mmlk.analysis.panels import PredictedScene, side_by_side
from mmlk.cli import main
from mmlk.datasets.layouts import DemoPlan, write_demo
from mmlk.studies import compare
from mmlk.studies.report import Cell, Column, References, StudyReport, StudyRow, cited, escape, plot_study

ROOT = Path(__file__).resolve().parent.parent.parent
REFERENCES = References(ROOT / 'configs' / 'references.yml')
SMALL = 'configs/studies/upernet_replknet-tiny-3_demo.py'
OTHER = 'configs/studies/upernet_mobilenetv2-3_demo.py'
DETECTOR = 'configs/demo/mask_rcnn_replknet-tiny_coco.py'


def entry(path=SMALL, name=None):
    return compare.ComparedModel(name or Path(path).stem, path, Config.fromfile(str(ROOT / path)))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('compare') / 'demo' / 'ade20k'
    write_demo(DemoPlan('ade20k', seed=0, train=6, val=3, size=(64, 80)), folder)
    return folder


# Statistics and the report


@pytest.mark.parametrize('number', [1, 2, 5])
def test_mean_and_deviation_are_numpys(number):
    values = np.random.RandomState(number).uniform(30, 60, number)
    cell = Cell(tuple(values), 'trained here', 'somewhere')
    assert cell.mean == pytest.approx(values.mean(), rel=1e-12)
    assert cell.deviation == pytest.approx(values.std(ddof=1) if number > 1 else 0, rel=1e-12)
    shown = Column('mIoU', 2).show(cell, ' ± ')
    assert shown == (f'{values.mean():.2f} ± {values.std(ddof=1):.2f}' if number > 1 else f'{values[0]:.2f}')


def report():
    columns = dict(accuracy=Column('mIoU (%), A & B', 2), parameters=Column('Params (M)', 1, 1e6), empty=Column('none'))
    counted = 'counted here', 'mmlk.analysis.complexity, 50 % of_it'
    lines = [StudyRow('a_b #1 {x} ~^\\', 'a.py', dict(accuracy=Cell((40.0, 42.0), 'trained here', 'seeds 0, 1'),
                                                      parameters=Cell((2.5e6, ), *counted)), ['ding2022scaling']),
             StudyRow('plain', 'b.py', dict(parameters=Cell((1e6, ), *counted)), ['liu2021swin', 'ding2022scaling']),
             StudyRow('known', 'c.py', dict(accuracy=Cell((50.0, ), 'published', 'a paper')))]
    return StudyReport('100 % of $', lines, columns, [('On ADE20K', ['zhou2017scene']), ('Nothing cited', [])],
                       dict(versions=dict(torch='2')))


def test_latex_is_escaped_and_its_rows_have_as_many_cells():
    assert escape('a_b & 5% $x^2 #{}~\\|<>') == (r'a\_b \& 5\% \$x\textasciicircum{}2 \#\{\}\textasciitilde{}'
                                                  r'\textbackslash{}\textbar{}\textless{}\textgreater{}')
    latex = report().latex()
    rows = [line for line in latex.splitlines() if line.endswith(r'\\')]
    assert [len(re.findall(r'(?<!\\)&', row)) for row in rows] == [2] * 4  # the empty column is left out
    bare = re.sub(r'\\[{}]', '', latex)
    assert bare.count('{') == bare.count('}')
    assert not re.search(r'(?<!\\)[#]', latex) and latex.count(r'\begin') == latex.count(r'\end')
    assert [latex.count(rule) for rule in (r'\toprule', r'\midrule', r'\bottomrule')] == [1, 1, 1]
    assert r'$41.00\pm 1.41$' in latex and r'$2.5$' in latex


def test_every_number_has_its_source_in_markdown_latex_and_json():
    made = report()
    markdown, latex = made.markdown(), made.latex()
    rows = [line for line in markdown.splitlines() if line.startswith('|')][2:]
    listed = dict(re.findall(r'^\[(\d+)\] (.+?) *$', markdown, re.MULTILINE))
    for line, row in zip(made.lines, rows):
        cells = [cell.strip() for cell in re.split(r'(?<!\\)\|', row)[2:-1]]
        for key, cell in zip(made.shown, cells):
            assert (cell == '–') is (key not in line.cells)
            if cell != '–':
                assert listed[re.search(r'\[(\d+)\]$', cell)[1]] == line.cells[key].source
    assert len(listed) == 3 and latex.count(r'\textsuperscript') == 4 + 3
    for model in made.to_dict()['models']:
        assert all(cell['origin'] and cell['detail'] and cell['values'] for cell in model['cells'].values())
    assert json.loads(json.dumps(made.to_dict()))['versions'] == dict(torch='2')


def test_a_plot_shows_mean_and_deviation_where_they_are():
    made = report()
    made.lines[2].cells['parameters'] = Cell((3e6, ), 'counted here', 'x')
    figure = plot_study(made, 'accuracy', ['parameters', 'empty'])
    names, against = figure.axes
    assert [label.get_text() for label in names.get_yticklabels()] == ['a_b #1 {x} ~^\\', 'known']
    points = [tuple(container[0].get_xydata()[0]) for container in against.containers]
    assert points == [(2.5, 41.0), (3.0, 50.0)]
    whisker = against.containers[0][2][0].get_segments()[0]
    assert whisker[:, 1].tolist() == pytest.approx([41 - 2**0.5, 41 + 2**0.5])


# References


def test_the_bibliography_has_what_is_cited_and_nothing_else():
    keys = cited(report().latex())
    assert set(keys) == {'ding2022scaling', 'liu2021swin', 'zhou2017scene'} and len(keys) == 3
    assert re.findall(r'^@\w+\{(\w+),', REFERENCES.bibtex(keys), re.MULTILINE) == keys


def test_entries_are_whole():
    for key, found in REFERENCES.entries.items():
        text = found['bibtex']
        assert re.match(rf'@\w+{{{key},\n', text) and text.count('{') == text.count('}') and text.endswith('}\n')
        assert {'title', 'author', 'year'} <= set(re.findall(r'^  (\w+) *=', text, re.MULTILINE))


def test_every_backbone_method_and_dataset_of_the_configs_can_be_cited():
    text = '\n'.join(path.read_text() for path in (ROOT / 'configs' / '_base_').rglob('*.py'))
    backbones = set(re.findall(r"backbone = dict\(\s*type='([\w.]+)'", text))
    heads = set(re.findall(r"decode_head=dict\(\s*type='(\w+)'", text))
    detectors = set(re.findall(r"^model = dict\(\s*type='(\w+)'", text, re.MULTILINE)) - {'EncoderDecoder'}
    data = set(re.findall(r"dataset=dict\(\s*type='(\w+)'", text)) - {'ConcatDataset'}
    assert len(backbones) > 10 and len(heads) > 3 and len(detectors) > 2 and len(data) > 2
    for name in backbones | heads | detectors | data:
        assert REFERENCES.of([name]), name
    for key in REFERENCES.of(heads | detectors):
        assert REFERENCES.entries[key]['name']


@pytest.mark.parametrize('name, key', [
    ('upernet_rdnet-t_ade20k', 'kim2024densenets'), ('upernet_dinov3-convnext-t_ade20k', 'simeoni2025dinov3')])
def test_a_model_of_timm_cites_its_paper_and_timm(name, key):
    assert REFERENCES.of(entry(f'configs/{name}.py').cited_names) == [key, 'wightman2019timm']


def test_families_of_one_paper_are_cited_by_one_entry():
    for name in ('ConvNeXt', 'ConvNeXtIsotropic', 'ConvNeXtRoadmap'):
        assert REFERENCES.of([f'mmlk.{name}']) == ['liu2022convnet'], name


def test_a_study_takes_published_results_from_the_records(tmp_path):
    study = compare.read_study(ROOT / 'configs' / 'studies' / 'kernel_size.yml')
    rows = {row['Name']: row for row in zoo.rows(zoo.read(ROOT))}
    figures = [rows[f'upernet_replknet{kernel}-120ep_ade20k']['Results'][0]['Metrics']['mIoU']
               for kernel in ('3', '7', '13', '31b')]
    assert study.finding.endswith('31-29-27-13 has {:.2f}, {:.2f}, {:.2f} and {:.2f} mIoU.'.format(*figures))
    for name in ('upernet_nothing', 'mask_rcnn_replknet31b_coco'):  # the latter has no published result
        (tmp_path / 'x.yml').write_text(f'title: x\nfinding: has {{{name}}}\nconfigs: {{a: b.py}}\n')
        with pytest.raises(ValueError, match=f'x.yml: .*{name}.* is no config with a published result'):
            compare.read_study(tmp_path / 'x.yml')


# Data, classes and budget


def test_another_set_of_photographs():
    found = entry('configs/upernet_resnet50_ade20k.py')
    compare.use_data(found.cfg, Path('/d/camvid11_jpg'), ['sky', 'tree', 'car'])
    for split in compare.SPLITS:
        dataset = found.cfg[f'{split}_dataloader'].dataset
        assert (dataset.type, dataset.data_root) == ('BaseSegDataset', '/d/camvid11_jpg/')
        assert (dataset.img_suffix, dataset.seg_map_suffix, dataset.reduce_zero_label) == ('.jpg', '.png', True)
        assert dataset.metainfo['classes'] == ('sky', 'tree', 'car') and len(dataset.metainfo['palette']) == 3
    assert found.cfg.model.decode_head.num_classes == found.cfg.model.auxiliary_head.num_classes == 3
    other = entry('configs/studies/upernet_resnet18_camvid.py')
    colours = other.cfg.test_dataloader.dataset.metainfo.palette
    compare.use_data(other.cfg, Path('/d/camvid'), other.cfg.test_dataloader.dataset.metainfo.classes)
    assert other.cfg.test_dataloader.dataset.metainfo.palette == colours  # the same classes keep their colours
    assert entry('configs/upernet_resnet50_ade20k.py').data == 'ADE20K'
    assert found.data == 'camvid11_jpg' and REFERENCES.of([found.data]) == ['brostow2009semantic']


def test_the_annotations_of_a_detectors_evaluator_move_along():
    found = entry(DETECTOR)
    compare.use_data(found.cfg, Path('/d/tiny'), ['a', 'b'])
    assert found.cfg.test_evaluator.ann_file == '/d/tiny/annotations/instances_val2017.json'
    assert found.cfg.train_dataloader.dataset.data_root == '/d/tiny/'
    assert found.cfg.model.roi_head.bbox_head.num_classes == found.cfg.model.roi_head.mask_head.num_classes == 2


@pytest.mark.parametrize('text, names', [
    ('1 sky\n2 tree\n', ['sky', 'tree']), ('sky\ntraffic light\n\n', ['sky', 'traffic light']),
    ('Idx\tcoco_id\tisthing\tName\n1\t1\t1\tperson\n2\t2\t1\ttennis racket\n', ['person', 'tennis racket'])])
def test_classes_of_a_file(text, names, tmp_path):
    (tmp_path / 'classes.txt').write_text(text)
    assert compare.read_classes(str(tmp_path / 'classes.txt')) == names


def test_classes_by_number_and_none(tmp_path):
    assert compare.read_classes('3') == ['class 1', 'class 2', 'class 3']
    (tmp_path / 'twice.txt').write_text('sky\nsky\n')
    for given in ('0', str(tmp_path / 'none.txt'), str(tmp_path / 'twice.txt')):
        with pytest.raises(ValueError, match=re.escape(given)):
            compare.read_classes(given)


def rates(cfg, steps):
    """The learning rate of every iteration, by mmengine's own schedulers, over the largest."""
    from mmengine.registry import PARAM_SCHEDULERS
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [PARAM_SCHEDULERS.build(dict(scheduler, optimizer=optimizer)) for scheduler in cfg.param_scheduler]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return np.array(found)


@pytest.mark.parametrize('budget', [2, 10, 70, 350, 1400])
def test_a_budget_keeps_the_shape_of_the_schedule(budget):
    whole, cut = entry().cfg, entry().cfg
    compare.use_budget(cut, budget)
    before, after = rates(whole, 700), rates(cut, budget)
    assert compare.training_length(cut) == (budget, 'iterations') and cut.param_scheduler[-1].end == budget
    assert after.max() > 0.4  # a warm-up that never ends would leave a thousandth
    if budget >= 70:
        same = np.interp(np.linspace(0.1, 1, 20), np.arange(budget) / budget, after)
        assert same == pytest.approx(np.interp(np.linspace(0.1, 1, 20), np.arange(700) / 700, before), abs=0.05)
    assert cut.train_cfg.val_begin > budget and 1 <= cut.default_hooks.checkpoint.interval <= budget


@pytest.mark.parametrize('wrap', [lambda one: one, lambda one: [one], lambda one: (one, ),
                                  lambda one: dict(generator=one, discriminator=[one])])
def test_schedulers_in_every_form_are_cut(wrap):
    cfg = entry().cfg
    cfg.param_scheduler = wrap(dict(type='PolyLR', power=1.0, begin=0, end=700, by_epoch=False))
    compare.use_budget(cfg, 70)
    found = list(compare._schedulers(cfg.param_scheduler))
    assert len(found) in (1, 2) and all(scheduler['end'] == 70 for scheduler in found)
    cfg.param_scheduler = None
    compare.use_budget(cfg, 7)


@pytest.mark.parametrize('hooks', [None, {}, dict(logger=None)])
def test_a_budget_without_hooks_in_the_config(hooks):
    cfg = entry().cfg
    cfg.default_hooks = hooks
    compare.use_budget(cfg, 40)
    assert cfg.default_hooks.checkpoint.interval == 10 and not cfg.default_hooks.checkpoint.by_epoch
    assert cfg.default_hooks.logger.interval == 4


def test_a_budget_of_epochs():
    found = entry(DETECTOR)
    compare.use_budget(found.cfg, 3)
    assert compare.training_length(found.cfg) == (3, 'epochs')
    warm_up, steps = found.cfg.param_scheduler
    assert (warm_up.end, steps.end, steps.milestones) == (25, 3, [2, 2])


# Runs: the tools are stand-ins that write what the real ones write

TRAIN = '''
import json, pathlib, sys
folder, work = pathlib.Path(__file__).parent, pathlib.Path(sys.argv[3])
with open(folder / 'calls.txt', 'a') as file:
    print('train', *sys.argv[4:], file=file)
work.mkdir(parents=True, exist_ok=True)
print('... Iter(train) [ 2/4]  lr: 1')
(work / 'iter_2.pth').write_text('half')
(work / 'last_checkpoint').write_text(str(work / 'iter_2.pth'))
if (folder / 'broken').exists():
    sys.exit('out of memory, say')
print('... Iter(train) [4/4]  lr: 0')
(work / 'iter_4.pth').write_text('whole')
(work / 'last_checkpoint').write_text(str(work / 'iter_4.pth'))
'''
TEST = '''
import json, pathlib, sys
folder, work = pathlib.Path(__file__).parent, pathlib.Path(sys.argv[4]) / '20260101_000000'
with open(folder / 'calls.txt', 'a') as file:
    print('test', pathlib.Path(sys.argv[2]).name, file=file)
work.mkdir(parents=True)
print('... Iter(test) [3/3]  mIoU: 40')
(work / 'x.json').write_text(json.dumps(dict(mIoU=40.0 + len(sys.argv[1]) % 3)))
'''


@pytest.fixture
def tools(tmp_path):
    folder = tmp_path / 'tools'
    folder.mkdir()
    (folder / 'train.py').write_text(TRAIN)
    (folder / 'test.py').write_text(TEST)
    return folder


def open_run(folder, budget=4, seed=0):
    found = entry()
    compare.use_budget(found.cfg, budget)
    run = compare.Run(found, seed, folder)
    run.open()
    return run


def calls(tools):
    return (tools / 'calls.txt').read_text().splitlines()


def test_what_is_done_is_not_done_again(tools, tmp_path):
    ticks = []
    run = open_run(tmp_path / 'run')
    assert not run.finished and not run.folder.exists()  # looking writes nothing
    run.carry_out(tools, lambda *tick: ticks.append(tick))
    assert ticks == [('train', 2, 4), ('train', 4, 4), ('test', 3, 3)]
    assert calls(tools) == ['train', 'test iter_4.pth']
    again = open_run(tmp_path / 'run')
    assert again.finished and again.state == run.state and again.state['versions']['torch'] == torch.__version__
    again.carry_out(tools, lambda *tick: pytest.fail('nothing was left to do'))
    assert len(calls(tools)) == 2


def test_a_run_that_was_cut_off_goes_on(tools, tmp_path):
    (tools / 'broken').touch()
    with pytest.raises(compare.RunFailed, match='out of memory, say'):
        open_run(tmp_path / 'run').carry_out(tools, lambda *tick: None)
    (tools / 'broken').unlink()
    open_run(tmp_path / 'run').carry_out(tools, lambda *tick: None)
    assert calls(tools) == ['train', 'train --resume', 'test iter_4.pth']
    state = json.loads((tmp_path / 'run' / 'run.json').read_text())
    (tmp_path / 'run' / 'run.json').write_text(json.dumps({k: v for k, v in state.items() if k != 'metrics'}))
    open_run(tmp_path / 'run').carry_out(tools, lambda *tick: None)  # cut off while it was tested
    assert calls(tools)[3:] == ['test iter_4.pth']
    (tmp_path / 'run' / 'train' / 'iter_4.pth').unlink()  # a lost checkpoint
    assert not open_run(tmp_path / 'run').finished


def test_a_checkpoint_that_was_overwritten_is_tested_again(tools, tmp_path):
    given = tmp_path / 'given.pth'
    given.write_text('first')

    def open_given():
        run = compare.Run(entry(), None, tmp_path / 'run')
        run.entry.checkpoint = str(given)
        run.open()
        return run

    open_given().carry_out(tools, lambda *tick: None)
    assert open_given().finished and calls(tools) == ['test given.pth']
    given.write_text('second, of another size')
    assert not open_given().finished
    open_given().carry_out(tools, lambda *tick: None)
    assert open_given().finished and calls(tools) == ['test given.pth'] * 2
    trained = open_run(tmp_path / 'trained')
    trained.carry_out(tools, lambda *tick: None)
    Path(trained.checkpoint).write_text('trained by something else')
    again = open_run(tmp_path / 'trained')
    again.carry_out(tools, lambda *tick: None)
    assert again.finished and calls(tools)[2:] == ['train', 'test iter_4.pth', 'test iter_4.pth']


def test_a_run_of_other_settings_is_refused(tools, tmp_path):
    open_run(tmp_path / 'run').carry_out(tools, lambda *tick: None)
    for change in (dict(budget=8), dict(seed=1)):
        with pytest.raises(ValueError, match=r'max_iters: 8 \(was 4\)' if 'budget' in change else r'seed: 1 \(was 0\)'):
            open_run(tmp_path / 'run', **change)
    (tmp_path / 'run' / 'run.json').write_text('{"checkpoint": ')
    with pytest.raises(ValueError, match='remove it'):
        open_run(tmp_path / 'run')


@pytest.mark.parametrize('line, total, unit, done', [
    ('Iter(train) [  20/700]  lr: 1', 700, 'iterations', (20, 700)),
    ('Epoch(train)  [2][ 25/75]  lr: 1', 6, 'epochs', (100, 450)),
    ('Iter(test) [ 50/101]    eta: 0', None, None, (50, 101)),
    ('Epoch(test) [10/20]    eta: 0', None, None, (10, 20)),
    ('Epoch(test) [3]  mIoU: 1', None, None, None), ('loss: 3/4', None, None, None)])
def test_progress_is_read_from_the_log(line, total, unit, done):
    assert compare.progress_of(f'01/01 00:00:00 - mmengine - INFO - {line}', total, unit) == done


def test_measurements_are_remembered_for_what_they_were_made_of(tmp_path):
    made = []

    def measured():
        made.append(1)
        return {'seconds': [0.1, len(made)]}

    path = tmp_path / 'latency.json'
    first = compare.remembered(path, dict(size=(1, 2)), measured)
    assert compare.remembered(path, dict(size=(1, 2)), measured) == first and len(made) == 1
    assert compare.remembered(path, dict(size=(2, 2)), measured) != first and len(made) == 2
    path.write_text('{')
    assert compare.remembered(path, dict(size=(2, 2)), measured)['seconds'] == [0.1, 3]


def test_what_is_published_is_told_from_what_is_trained_here(tools, tmp_path):
    published, trained = entry('configs/upernet_replknet31b_ade20k.py'), entry()
    runs = [compare.Run(trained, seed, tmp_path / f'seed{seed}') for seed in (0, 1)]
    for run in runs:
        run.carry_out(tools, lambda *tick: None)
    columns, cells = compare.accuracy([published, trained], runs, ROOT)
    row = next(row for row in zoo.rows(zoo.read(ROOT)) if row['Name'] == published.stem)
    cell = cells[published.name]['mIoU, ADE20K, published']
    assert cell.values == (row['Results'][0]['Metrics']['mIoU'], ) and cell.origin == 'published'
    assert row['Published']['Source'] in cell.detail
    assert list(cells[trained.name]) == ['mIoU, demo scenes, trained here']
    cell = cells[trained.name]['mIoU, demo scenes, trained here']
    assert len(cell.values) == 2 and 'from scratch on demo scenes, 700 iterations, seeds 0, 1' in cell.detail
    assert set(columns) == {key for found in cells.values() for key in found}


def test_models_are_drawn_side_by_side_on_the_same_scenes():
    scenes = [PredictedScene(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), int), np.ones((4, 6), int), f'{i}')
              for i in (1, 2)]
    figure = side_by_side(dict(ours=scenes, theirs=scenes), ('sky', 'sea'))
    assert [axes.get_title() for axes in figure.axes] == ['1', 'ground truth', 'ours', 'theirs',
                                                          '2', 'ground truth', 'ours', 'theirs']
    with pytest.raises(ValueError, match='different scenes'):
        side_by_side(dict(ours=scenes, theirs=scenes[::-1]), ('sky', 'sea'))


# The tool


@pytest.fixture
def refuse(monkeypatch, capsys, tmp_path):
    """The message with which the tool ends; it must end before anything is trained or measured."""
    def run(*arguments):
        for name in ('compare_latency', 'measure_model_erf'):
            monkeypatch.setattr(compare, name, lambda *_, **__: pytest.fail('long work'))
        monkeypatch.setattr(compare.Run, 'carry_out', lambda *_: pytest.fail('long work'))
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit) as ended:
            main(['compare', *map(str, arguments), '--out', str(tmp_path / 'out')])
        assert ended.value.code == 2
        message = capsys.readouterr().err
        assert 'Traceback' not in message
        return message

    return run


def test_what_cannot_be_compared_is_refused(refuse, tmp_path):
    (tmp_path / 'bare.py').write_text("default_scope = 'mmseg'\nmodel = dict(type='EncoderDecoder')\n")
    (tmp_path / Path(SMALL).name).write_text(f"_base_ = '{ROOT / SMALL}'\n")
    (tmp_path / 'study.yml').write_text('configs: [a.py]\n')
    assert 'has no backbone' in refuse(tmp_path / 'bare.py')
    assert f'same name: {Path(SMALL).stem}' in refuse(SMALL, tmp_path / Path(SMALL).name)
    assert 'different task' in refuse(SMALL, DETECTOR)
    assert 'different data' in refuse(SMALL, 'configs/upernet_resnet50_ade20k.py')
    assert 'no config at' in refuse(tmp_path / 'none.py')
    assert 'is no study' in refuse(tmp_path / 'study.yml')
    assert '--seeds' in refuse(SMALL, '--seeds', 1, 1)
    assert '--budget' in refuse(SMALL, '--budget', 0)
    assert 'there is no config other' in refuse(SMALL, '--checkpoints', 'other=x.pth')
    assert '--shape' in refuse(SMALL, 'configs/studies/upernet_mobilenetv2-3_demo-280.py')
    assert 'none.pth' in refuse(SMALL, '--checkpoints', f'{Path(SMALL).stem}={tmp_path}/none.pth')
    assert 'gone.pth' in refuse(SMALL, '--budget', 1, '--cfg-options', 'model.backbone.init_cfg.type=mmlk.Pretrained',
                                f'model.backbone.init_cfg.checkpoint={tmp_path}/gone.pth')


def test_data_that_cannot_be_used_is_refused(refuse, tmp_path):
    empty, broken = tmp_path / 'empty', tmp_path / 'demo' / 'broken'
    for folder in ('images', 'annotations'):
        for split in ('training', 'validation'):
            (empty / folder / split).mkdir(parents=True)
    assert 'no file *.jpg' in refuse(SMALL, '--budget', 1, '--data-root', empty)
    write_demo(DemoPlan('ade20k', seed=0, train=2, val=2, size=(64, 80)), broken)
    victim = sorted((broken / 'images' / 'training').glob('*.jpg'))[1]
    victim.write_bytes(victim.read_bytes()[:300])
    message = refuse(SMALL, '--budget', 1, '--data-root', broken)
    assert 'unreadable image' in message and victim.name in message
    victim.unlink()
    label = sorted((broken / 'annotations' / 'training').glob('*.png'))[0]
    Image.fromarray(np.full((64, 80), 99, np.uint8)).save(label)
    assert 'label out of range' in refuse(SMALL, '--budget', 1, '--data-root', broken)
    assert 'cannot be read as an image' in refuse(SMALL, '--erf-images', corrupt_images(tmp_path))


def corrupt_images(tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'a.jpg').write_bytes(b'no image')
    return tmp_path / 'photos'


def test_from_configs_to_a_report_and_again(data, tmp_path, monkeypatch, capsys):
    """Two small networks trained for two iterations, tested and measured; the second call trains nothing."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    command = [SMALL, OTHER, '--data-root', data, '--budget', 2, '--turns', 1, '--erf-size', 64, '--erf-num', 1,
               '--num', 2, '--out', tmp_path / 'out']
    main(['compare', *map(str, command)])
    assert 'trained in' in capsys.readouterr().out
    monkeypatch.setattr(compare.Run, '_run', lambda *_: pytest.fail('nothing was left to do'))
    main(['compare', *map(str, command)])
    assert '2 of 2 runs are finished already' in capsys.readouterr().out
    out = tmp_path / 'out'
    content = json.loads((out / 'report.json').read_text())
    keys = {'mIoU, demo scenes, trained here', 'parameters', 'macs', 'latency', 'memory', 'erf0.2', 'erf0.3', 'erf0.5',
            'erf0.99'}
    for model, run in zip(content['models'], content['runs']):
        assert set(model['cells']) == keys
        assert model['cells']['mIoU, demo scenes, trained here']['mean'] == run['metrics']['mIoU']
        assert '2 iterations, seed 0' in model['cells']['mIoU, demo scenes, trained here']['detail']
    cites = cited((out / 'table.tex').read_text())
    assert {'ding2022scaling', 'sandler2018mobilenetv2', 'xiao2018unified'} <= set(cites)
    assert re.findall(r'^@\w+\{(\w+),', (out / 'references.bib').read_text(), re.MULTILINE) == cites
    for name in ('results', 'predictions', 'erf'):
        assert f'![{name}.png]({name}.png)' in (out / 'report.md').read_text()
        assert np.asarray(Image.open(out / f'{name}.png').convert('L')).std() > 5
