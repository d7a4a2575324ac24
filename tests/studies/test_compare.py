"""Comparisons: statistics against numpy, what is done is kept, and every number says where it comes from."""
import argparse
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.config import Config
from PIL import Image

import mmlk
from mmlk.analysis import zoo
from mmlk.analysis.drawing import draw_annotation
from mmlk.analysis.panels import Instances, PredictedScene, side_by_side
from mmlk.cli import main, robustness
from mmlk.datasets.layouts import DemoPlan, write_demo
from mmlk.engine.network import build_network
from mmlk.evaluation import statistics
from mmlk.evaluation.per_image import SegmentationFigures
from mmlk.studies import compare, inside
from mmlk.studies.differences import agreements, differences
from mmlk.studies.report import (Cell, Column, Difference, References, StudyReport, StudyRow, cited, escape,
                                 plot_study)
from tests.utils import fill

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
import json, pathlib, shutil, sys
folder, work = pathlib.Path(__file__).parent, pathlib.Path(sys.argv[4]) / '20260101_000000'
with open(folder / 'calls.txt', 'a') as file:
    print('test', pathlib.Path(sys.argv[2]).name, file=file)
work.mkdir(parents=True)
print('... Iter(test) [3/3]  mIoU: 40')
given = folder / 'metrics.json'
metrics = json.loads(given.read_text()) if given.exists() else dict(mIoU=40.0 + len(sys.argv[1]) % 3)
(work / 'x.json').write_text(json.dumps(metrics))
if (folder / 'per_image.npz').exists():
    report = pathlib.Path(sys.argv[sys.argv.index('--report') + 1])
    report.mkdir()
    shutil.copy(folder / 'per_image.npz', report)
'''
CORRUPTED = '''
import pathlib, sys
folder, out = pathlib.Path(__file__).parent, pathlib.Path(sys.argv[sys.argv.index('--corruptions-dir') + 1])
with open(folder / 'calls.txt', 'a') as file:
    print(*sys.argv[sys.argv.index('--corruptions'):-2], file=file)
out.mkdir(parents=True, exist_ok=True)
results = out / 'results.json'
results.write_text('first second' if results.exists() else 'first')
if (folder / 'broken').exists():
    sys.exit('out of memory, say')
(out / 'robustness.json').write_text('{}')
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
    (tmp_path / 'run' / 'train' / 'iter_4.pth').unlink()  # a lost checkpoint: what it gave in the test is known
    assert open_run(tmp_path / 'run').finished
    open_run(tmp_path / 'run').carry_out(tools, lambda *tick: pytest.fail('nothing was left to do'))
    (tmp_path / 'run' / 'run.json').write_text('{"checkpoint": "iter_4.pth"}')
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


def figures(right, path=None):
    """Figures of images in which so many of 1000 pixels of each are right, of one class; saved if there is a path."""
    inside = np.asarray(right).reshape(-1, 1)
    made = SegmentationFigures([f'{index}.png' for index in range(len(inside))], ['sky'], inside, inside,
                               np.full_like(inside, 1000))
    if path is not None:
        made.save(path)
    return made


def test_corrupted_images_are_tested_once_for_each_checkpoint_plan_and_seed(tools, tmp_path):
    def run_with(plan, seed=0):
        """Test as a new call does; what results.json has then."""
        run = open_run(tmp_path / 'run')
        assert not run.corrupted(plan, seed)
        options = ['--corruptions', *plan, '--severities', '1']
        run.corrupt(tools, options, plan, seed, lambda *_: None)
        assert calls(tools)[-1] == ' '.join(options)
        run = open_run(tmp_path / 'run')
        assert run.corrupted(plan, seed) and not run.corrupted(plan, seed + 1)
        return (run.corruptions / 'results.json').read_text()

    run = open_run(tmp_path / 'run')
    run.carry_out(tools, lambda *_: None)
    (tools / 'test.py').write_text(CORRUPTED)
    fog, snow = dict(fog=[1]), dict(snow=[1])
    (tools / 'broken').touch()
    with pytest.raises(compare.RunFailed, match=r'(?s)corruptions\.log.*out of memory, say'):
        run.corrupt(tools, ['--corruptions', 'fog'], fog, 0, lambda *_: None)
    assert (run.corruptions / 'results.json').is_file()
    (tools / 'broken').unlink()
    assert run_with(fog) == 'first second', 'the second call goes on'
    (tools / 'broken').touch()
    run = open_run(tmp_path / 'run')
    with pytest.raises(compare.RunFailed):  # after robustness.json is written, which is that of another plan now
        (run.corruptions / 'robustness.json').write_text('of snow')
        run.corrupt(tools, ['--corruptions', 'snow'], snow, 0, lambda *_: None)
    (tools / 'broken').unlink()
    assert not open_run(tmp_path / 'run').corrupted(fog)
    assert run_with(snow) == 'first second', 'another plan takes what is there'
    assert run_with(snow, seed=3) == 'first', 'another seed takes nothing'
    (open_run(tmp_path / 'run').corruptions / 'robustness.json').unlink()
    assert run_with(snow, seed=3) == 'first second'
    Path(open_run(tmp_path / 'run').checkpoint).write_text('another one')
    (tools / 'test.py').write_text(TEST)
    open_run(tmp_path / 'run').carry_out(tools, lambda *_: None)
    (tools / 'test.py').write_text(CORRUPTED)
    assert run_with(snow, seed=3) == 'first', 'of the checkpoint that was overwritten'


def test_what_is_measured_on_corrupted_images_is_of_the_runs_that_have_it(tmp_path, capsys):
    """A detector's metric is a share; a seed without the metric, or without robustness.json, is left out."""
    found, plan = entry(DETECTOR, 'detector'), {'gaussian_noise': [2], 'shot_noise': [2], 'fog': [1, 3]}
    runs, metric = [], 'coco/bbox_mAP'
    for seed, (clean, noise, fog) in enumerate([(0.5, 0.2, 0.4), (0.4, 0.3, 0.2), (0.0, 0.0, 0.0), (None, 0, 0)]):
        run = compare.Run(found, seed, tmp_path / str(seed), dict(tested_stamp=[1, 2]))
        run.state['corruptions'] = dict(plan=plan, of=[[1, 2], 7, mmlk.__version__])
        run.corruptions.mkdir(parents=True)
        summary = {} if clean is None else {metric: dict(clean=clean, corruptions=dict(
            gaussian_noise=noise, shot_noise=noise, fog=fog))}
        (run.corruptions / 'robustness.json').write_text(json.dumps(dict(summary=summary)))
        runs.append(run)
    line, columns = StudyRow('detector', 'x.py'), {}
    args = SimpleNamespace(plan=plan, corruption_seed=7, out=tmp_path)
    inside.add_robustness([line], columns, [found], [*runs[:2], runs[3]], args)
    assert line.cells['mPC of box AP'].values == pytest.approx([100 * 0.8 / 3, 100 * 0.8 / 3])
    assert line.cells['rPC of box AP'].values == pytest.approx([100 * 0.8 / 3 / 0.5, 100 * 0.8 / 3 / 0.4])
    assert line.cells['mPC of box AP'].detail == (
        'mean over gaussian_noise, shot_noise of severity 2; fog of severity 1, 3, random seed 7, by the weights of '
        'seeds 0, 1')
    assert 'detector, seed 3: the tests on corrupted images have no box AP' in capsys.readouterr().out
    assert 'mPC of mask AP' not in columns and (tmp_path / 'robustness.png').is_file()
    again = StudyRow('detector', 'x.py')
    inside.add_robustness([again], columns, [found], runs[1:3], args)
    assert 'rPC of box AP' not in again.cells and again.cells['mPC of box AP'].values[1] == 0
    nothing = StudyRow('detector', 'x.py')
    inside.add_robustness([nothing], columns, [found], runs, SimpleNamespace(**{**vars(args), 'corruption_seed': 8}))
    assert not nothing.cells


def test_options_of_corruptions_are_passed_on():
    parser = argparse.ArgumentParser()
    robustness.add_arguments(parser, folder=False)
    text = '--corruptions noise fog --severities 1 3 --noise-severities 2 --corruption-seed 4'.split()
    assert robustness.given_options(parser.parse_args(text)) == text
    assert robustness.given_options(parser.parse_args([])) == []


def test_a_run_from_before_there_were_reports_is_tested_again_and_never_trained(tools, tmp_path):
    folder = tmp_path / 'run'
    open_run(folder).carry_out(tools, lambda *tick: None)
    state = json.loads((folder / 'run.json').read_text())
    assert state.pop('report') == []  # the stand-in has written none, and is not asked again
    assert open_run(folder).finished
    (folder / 'run.json').write_text(json.dumps(state))
    figures([400, 500], tools / 'per_image.npz')
    assert not open_run(folder).finished
    open_run(folder).carry_out(tools, lambda *tick: None)
    assert open_run(folder).finished and open_run(folder).state['report'] == ['per_image.npz']
    assert calls(tools) == ['train', 'test iter_4.pth', 'test iter_4.pth']
    (folder / 'report' / 'per_image.npz').unlink()  # a report that was lost
    open_run(folder).carry_out(tools, lambda *tick: None)
    assert calls(tools)[3:] == ['test iter_4.pth'] and (folder / 'report' / 'per_image.npz').is_file()
    (folder / 'run.json').write_text(json.dumps(state))
    (folder / 'train' / 'iter_4.pth').unlink()
    assert open_run(folder).finished  # neither trained nor tested


def test_a_config_without_a_report_is_tested_without_one(tools, tmp_path, monkeypatch):
    figures([400, 500], tools / 'per_image.npz')
    monkeypatch.setattr(compare.Run, 'no_report', 'there is none')
    with pytest.raises(compare.RunFailed, match="'--report' is not in list"):  # the stand-in looks for it
        open_run(tmp_path / 'run').carry_out(tools, lambda *tick: None)
    (tools / 'per_image.npz').unlink()
    open_run(tmp_path / 'run').carry_out(tools, lambda *tick: None)
    assert open_run(tmp_path / 'run').finished


# Differences


def finished(folder, name, *seeds):
    """A model and its finished runs, which have these numbers of right pixels in each image."""
    model, runs = entry(name=name), []
    for seed, right in enumerate(seeds):
        run = compare.Run(model, seed, folder / name / f'seed{seed}')
        figures(right, run.report / 'per_image.npz')
        metrics = dict(mIoU=round(100 * np.mean(right) / 1000, 2))
        run.state = dict(metrics=metrics, report=['per_image.npz'], machine='here')
        runs.append(run)
    return model, runs


@pytest.fixture
def four(tmp_path):
    """Four models: the second is better on every image, the third on some, and the fourth is the first."""
    rng = np.random.RandomState(0)
    first = rng.randint(300, 700, (3, 50))
    models = dict(a=first, b=first[:2] + rng.randint(80, 120, (2, 50)), c=first + rng.randint(-40, 44, (3, 50)),
                  d=first)
    pairs = [finished(tmp_path, name, *right) for name, right in models.items()]
    return [model for model, _ in pairs], [run for _, runs in pairs for run in runs]


def test_differences_are_of_means_and_named_by_what_is_known(four):
    entries, runs = four
    found = differences(entries, runs, None, 500)
    assert [(one.model, one.reference, one.metric) for one in found] == [(name, 'a', 'mIoU') for name in 'bcd']
    means = {entry.name: np.mean([run.state['metrics']['mIoU'] for run in runs if run.entry is entry])
             for entry in entries}
    for one in found:
        assert one.value == pytest.approx(means[one.model] - means['a'], abs=0.01) and not one.note
        assert (one.images, one.interval[0] <= one.value <= one.interval[1]) == (50, True)
    assert [one.seeds for one in found] == [(2, 3), (3, 3), (3, 3)] and found[0].over == '50 images, 2 and 3 seeds'
    assert [one.verdict for one in found] == ['higher', 'not distinguishable', 'not distinguishable']
    assert found[2].value == 0 and found[2].p == 1
    other = differences(entries, runs, 'b', 500)
    assert [(one.model, one.verdict) for one in other] == [
        ('a', 'lower'), ('c', 'lower'), ('d', 'lower')]
    assert other[0].value == -found[0].value and other[0].interval == pytest.approx(
        [-end for end in found[0].interval[::-1]], abs=0.2)


def test_p_values_are_corrected_for_the_number_of_models(four):
    entries, runs = four
    alone = differences([entries[0], entries[2]], runs, None, 500)[0]
    assert differences(entries, runs, None, 500)[1].p == pytest.approx(min(1, 2 * alone.p))


def test_a_report_says_why_there_is_no_interval(four, tmp_path):
    entries, runs = four
    by_model = {entry.name: [run for run in runs if run.entry is entry] for entry in entries}

    def note(**changed):
        some = [run for name in 'ac' for run in changed.get(name, by_model[name])]
        one, = differences([entries[0], entries[2]], some, None, 100)
        return one

    missing = by_model['c'][1].report / 'per_image.npz'
    missing.rename(missing.with_name('other.npz'))
    one = note()
    assert one.note == f'no interval over images, because {missing} is not there'
    assert (one.images, one.seeds, one.over) == (0, (3, 3), '3 and 3 seeds') and one.interval
    one = note(a=by_model['a'][:1], c=by_model['c'][:1])
    assert (one.images, one.seeds) == (50, ())
    assert 'no interval over seeds, because that needs two trainings' in one.note
    one = note(a=by_model['a'][:1], c=by_model['c'][1:2])
    assert (one.interval, one.p, one.verdict, one.over) == (None, None, 'not known', '')
    del by_model['c'][1].state['report']
    assert 'because it was tested before there were reports, and its checkpoint is gone' in note().note
    by_model['c'][0].state['metrics']['mIoU'] += 1
    assert re.search(r'gives mIoU [\d.]+ and the test printed', note(c=by_model['c'][:1]).note)
    figures([400, 500], by_model['c'][2].report / 'per_image.npz')
    by_model['c'][2].state['metrics']['mIoU'] = 45.0
    assert 'tested on different images' in note(c=by_model['c'][2:]).note
    pairs = [finished(tmp_path / 'few', name, [right] * 19) for name, right in (('e', 400), ('f', 500))]
    one, = differences([model for model, _ in pairs], [run for _, own in pairs for run in own], None, 100)
    assert 'because 19 are too few: it needs 20' in one.note and one.verdict == 'not known'
    (by_model['c'][2].report / 'per_image.npz').write_bytes(b'PK no figures')
    assert 'has no figures of images' in note(c=by_model['c'][2:]).note


def test_rankings_are_compared_with_what_was_published():
    columns = {key: Column(key) for key in ('mIoU, ADE20K, published', 'mIoU, demo scenes, trained here', 'parameters')}
    lines = []
    for name, published, measured in (('a', 40, 1), ('b', 41, 3), ('c', 42, 2), ('d', 43, 4), ('e', 44, None)):
        lines.append(StudyRow(name, '', dict(zip(columns, (Cell((float(published), ), '', ''), *(
            [] if measured is None else [Cell((float(measured), measured + 0.5), '', '')]))))))
    found, = agreements(lines, columns, list(columns)[:2])
    assert (found.tau, found.models) == (pytest.approx(4 / 6), 4)
    made = StudyReport('', lines, columns, [], agreements=[found])
    assert "Kendall's tau is 0.67 over 4 models (p = 0.33)." in made.markdown()
    assert json.loads(json.dumps(made.to_dict()))['agreements'][0]['tau'] == found.tau
    assert agreements(lines[:2], columns, list(columns)[:2]) == []


def with_differences():
    made = report()
    made.lines[1].cells['accuracy'] = Cell((44.0, 44.5), 'trained here', 'seeds 0, 1')
    made.differences = [
        Difference('mIoU', 'plain', 'a_b #1 {x} ~^\\', 3.25, (0.5, 6.0), 0.0004, 50, (2, 2)),
        Difference('mIoU', 'known', 'a_b #1 {x} ~^\\', -0.1, (-0.8, 0.6), 0.4, 50, note='no interval over seeds')]
    return made


def test_differences_are_in_markdown_latex_json_and_the_picture():
    made = with_differences()
    markdown, latex = made.markdown(), made.latex()
    rows = [line for line in markdown.splitlines() if line.startswith('|')][5:]
    head, _, higher, unclear = ([cell.strip() for cell in row[1:-1].split('|')] for row in rows)
    assert higher[3:] == ['+3.25', '+0.50 to +6.00', '50 images, 2 and 2 seeds', '< 0.001', 'higher']
    assert unclear[3:] == ['−0.10', '−0.80 to +0.60', '50 images', '0.400', 'not distinguishable']
    assert 'which makes 2 comparisons.' in markdown and 'known: no interval over seeds.' in markdown
    assert latex.count(r'\toprule') == 2 and latex.count(r'\begin') == latex.count(r'\end') == 4
    row, = (line for line in latex.splitlines() if line.strip().startswith('known &') and 'distinguishable' in line)
    assert '$-$0.80 to +0.60' in row and len(re.findall(r'(?<!\\)&', row)) == len(head) - 1 == 7
    stored = json.loads(json.dumps(made.to_dict()))['differences']
    assert [one['verdict'] for one in stored] == ['higher', 'not distinguishable']
    assert stored[1]['interval'] == [-0.8, 0.6]
    axes = plot_study(made, 'accuracy', []).axes[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ['plain', 'known\nnot distinguishable']
    drawn = [list(line.get_xdata()) for line in axes.lines]
    assert drawn[:4] == [[0.5, 6.0], [3.25], [-0.8, 0.6], [-0.1]]
    assert [line.get_markerfacecolor() == 'white' for line in axes.lines[1:4:2]] == [False, True]


def test_boxes_are_drawn_over_masks():
    image = np.full((40, 60, 3), 100, np.uint8)
    masks = np.zeros((1, 40, 60), bool)
    masks[0, 10:30, 10:30] = True
    found = Instances(np.array([[10., 10., 40., 35.]]), np.array([1]), masks)
    drawn = draw_annotation(image, found, ('a', 'b'), [(0, 0, 255), (255, 0, 0)])
    assert drawn[20, 20].tolist() == [193, 40, 40] and drawn[35, 30].tolist() == [255, 0, 0]
    assert (drawn[:, 45:] == 100).all() and (image == 100).all()
    labels = np.zeros((40, 60), int)
    assert (draw_annotation(image, labels, ('a', ), [(0, 0, 255)])[..., 2] > 150).all()


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
    assert '--resamples must be at least 100' in refuse(SMALL, '--resamples', 10)
    assert '--corruptions needs weights' in refuse(SMALL, '--corruptions', 'fog')
    assert '--cam needs weights' in refuse(SMALL, '--cam')
    assert "no corruption 'rain'" in refuse(SMALL, '--train', '--corruptions', 'rain')
    assert '--severities has no effect' in refuse(SMALL, '--train', '--severities', 1)
    assert '--reference: nothing is none of the models compared' in refuse(SMALL, OTHER, '--reference', 'nothing')
    assert 'is neither trained nor tested' in refuse(SMALL, OTHER, '--reference', Path(SMALL).stem)
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
    monkeypatch.setattr(statistics, 'FEWEST', 3)
    command = [SMALL, OTHER, '--data-root', data, '--budget', 2, '--turns', 1, '--erf-size', 64, '--erf-num', 1,
               '--num', 2, '--out', tmp_path / 'out', '--reference', Path(OTHER).stem, '--resamples', 100,
               '--corruptions', 'fog', 'contrast', '--severities', 1, 5]
    main(['compare', *map(str, command)])
    assert 'trained in' in capsys.readouterr().out
    monkeypatch.setattr(compare.Run, '_run', lambda *_: pytest.fail('nothing was left to do'))
    main(['compare', *map(str, command)])
    assert '2 of 2 runs are finished already' in capsys.readouterr().out
    out = tmp_path / 'out'
    robust_figures_are_those_of_the_tests(out)
    content = json.loads((out / 'report.json').read_text())
    keys = {'mIoU, demo scenes, trained here', 'parameters', 'macs', 'latency', 'memory', 'erf0.2', 'erf0.3', 'erf0.5',
            'erf0.99', 'mPC of mIoU', 'rPC of mIoU'}
    for model, run in zip(content['models'], content['runs']):
        assert set(model['cells']) == keys
        assert model['cells']['mIoU, demo scenes, trained here']['mean'] == run['metrics']['mIoU']
        assert '2 iterations, seed 0' in model['cells']['mIoU, demo scenes, trained here']['detail']
    one, = content['differences']
    assert (one['model'], one['reference'], one['images']) == (Path(SMALL).stem, Path(OTHER).stem, 3)
    assert one['interval'][0] <= one['difference'] <= one['interval'][1] and 0 < one['p_holm'] <= 1
    assert f'| {Path(SMALL).stem} | {Path(OTHER).stem} | mIoU (%) |' in (out / 'report.md').read_text()
    assert 'Differences of accuracy' in (out / 'table.tex').read_text()
    page = (out / 'report.html').read_text()
    assert page.count('src="data:image/png') == 3 and page.count('data:image/webp') == 2 * 4
    assert one['verdict'] in page and Path(OTHER).stem in page
    cites = cited((out / 'table.tex').read_text())
    assert {'ding2022scaling', 'sandler2018mobilenetv2', 'xiao2018unified'} <= set(cites)
    assert re.findall(r'^@\w+\{(\w+),', (out / 'references.bib').read_text(), re.MULTILINE) == cites
    for name in ('results', 'robustness', 'predictions', 'erf'):
        assert f'![{name}.png]({name}.png)' in (out / 'report.md').read_text()
        assert np.asarray(Image.open(out / f'{name}.png').convert('L')).std() > 5
    main(['compare', *map(str, command[:command.index('--corruptions')]), '--skip', 'latency', 'erf', 'predictions'])
    assert re.findall(r'!\[(\w+)', (out / 'report.md').read_text()) == ['results'], 'pictures of this call only'


def robust_figures_are_those_of_the_tests(out):
    for model in json.loads((out / 'report.json').read_text())['models']:
        folder = out / 'runs' / Path(model['config']).stem / 'seed0' / 'robustness'
        tests = json.loads((folder / 'results.json').read_text())['tests']
        assert list(tests) == ['clean', 'fog 1', 'fog 5', 'contrast 1', 'contrast 5']
        mean = np.mean([one['mIoU'] for name, one in tests.items() if name != 'clean'])
        found = {key: model['cells'][f'{key} of mIoU'] for key in ('mPC', 'rPC')}
        assert found['mPC']['values'] == pytest.approx([mean], rel=1e-9)
        assert found['rPC']['values'] == pytest.approx([100 * mean / tests['clean']['mIoU']], rel=1e-9)
        assert 'mean over fog, contrast of severity 1, 5, by the weights of seed 0' in found['mPC']['detail']
        assert tests['clean']['mIoU'] == model['cells']['mIoU, demo scenes, trained here']['mean']


@pytest.mark.parametrize('cfg', [SMALL, DETECTOR], ids=['segmentors', 'detectors'])
def test_activation_maps_of_all_models_are_of_one_class(cfg, data, tmp_path, monkeypatch):
    """The class that the first model finds is explained of the second, too, whose own would be another."""
    pytest.importorskip('pytorch_grad_cam')
    layout = 'ade20k' if cfg == SMALL else 'coco'
    monkeypatch.chdir(ROOT)
    if layout == 'coco':
        data = tmp_path / 'coco'
        write_demo(DemoPlan('coco', seed=0, train=2, val=3, size=(64, 80)), data)
    entries, runs, calls, drawn = [], [], [], []
    for seed, name in enumerate(('one', 'other')):
        found = entry(cfg, name)
        compare.use_data(found.cfg, str(data), None)
        found.checkpoint = str(tmp_path / f'{name}.pth')
        model = fill(build_network(found.cfg), seed)
        with torch.no_grad():  # each is sure of one class
            head = model.decode_head.conv_seg if layout == 'ade20k' else model.roi_head.bbox_head.fc_cls
            head.bias[1 + seed] += 30
        torch.save(dict(state_dict=model.state_dict()), found.checkpoint)
        entries.append(found)
        runs.append(compare.Run(found, None, tmp_path / name))
    explain, grid = inside.cam.explain, inside.cam.grid
    monkeypatch.setattr(inside.cam, 'explain', lambda subject, *args, **kw: calls.append(
        (kw['label'], explain(subject, *args, **kw))) or calls[-1][1])
    monkeypatch.setattr(inside.cam, 'grid', lambda rows: drawn.extend(rows) or grid(rows))
    inside.draw_cams(entries, runs, SimpleNamespace(num=2, device='cpu', out=tmp_path))
    classes = entries[0].cfg.test_dataloader.dataset.metainfo.classes
    assert [label for label, _ in calls] == [None, None, 1, 1]
    assert [row.title for row in drawn] == [f'{row.title.partition(":")[0]}: {classes[1]}' for row in drawn]
    assert [list(row.overlays) for row in drawn] == [['one', 'other']] * 2
    for row, (_, explained) in zip(drawn, calls):
        assert explained[0].label == 1 and (row.overlays['one'] != row.image).mean() > 0.1
    for row, (_, explained) in zip(drawn, calls[2:]):  # the other does not find it, and has the bare image
        assert (row.overlays['other'] == row.image).all()
        assert explained is None if layout == 'coco' else explained[0].region is None
    assert (tmp_path / 'cam.png').is_file()


def test_robustness_is_drawn_over_runs():
    figure = inside.plot_robustness(dict(a={'clean': [50.0, 60.0], 'fog': [20.0, 40.0]},
                                         b={'clean': [70.0], 'fog': [10.0]}), 'mIoU (%)')
    (axes, ) = figure.axes
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[55.0, 30.0], [70.0, 10.0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['a', 'b']
    assert [label.get_text() for label in axes.get_yticklabels()] == ['clean', 'fog']
    spans = [[segment[:, 0].tolist() for segment in lines.get_segments()] for lines in axes.collections]
    assert spans == [[[50.0, 60.0], [20.0, 40.0]], [[70.0, 70.0], [10.0, 10.0]]]


def test_names_of_models_fit_into_the_picture_of_robustness():
    names = ['cascade_mask_rcnn_replknet31b_coco', 'mask_rcnn_unireplknet-s_coco', '_private', 'cost $_^ x$']
    figure = inside.plot_robustness({name: {'clean': [50.0], 'fog': [20.0]} for name in names}, 'mIoU (%)')
    FigureCanvasAgg(figure).draw()
    (legend, ) = figure.legends
    assert [text.get_text().strip().replace('\\$', '$') for text in legend.get_texts()] == names
    box = legend.get_window_extent()
    assert 0 <= box.x0 and box.x1 <= figure.bbox.x1
