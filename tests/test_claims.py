"""docs/claims.md: it is made of the files that are there, its statistics are scipy's, and its names exist."""
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from mmlk.studies.report import Cell, Column, StudyReport, StudyRow

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / 'docs' / 'figures'


def load(name):
    spec = importlib.util.spec_from_file_location(name, FIGURES / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


claims, measure = load('claims'), load('measure_claims')
LISTED = yaml.safe_load((FIGURES / 'claims.yml').read_text(encoding='utf-8'))
LINES = [(group, claim) for group in LISTED['groups'] for claim in group['claims']]
COLUMN = 'mIoU, demo scenes, trained here'


def report(values):
    lines = [StudyRow(name, f'{name}.py', {COLUMN: Cell(tuple(numbers), 'trained here', 'by the config, on a machine'),
                                           'parameters': Cell((1e6, ), 'counted here', 'counted')})
             for name, numbers in values.items()]
    facts = dict(command='python tools/compare.py configs/studies/kernel_size.yml --out /mine/b --data-root /yours d',
                 machine='a machine', versions=dict(torch='2'), settings=dict(out='/mine/b'),
                 runs=[dict(folder='/mine/b/x')])
    columns = {COLUMN: Column('mIoU (%)', 2), 'parameters': Column('Params (M)', 2, 1e6)}
    return StudyReport('Kernel size', lines, columns, [], facts).to_dict()


def test_the_page_is_made_from_the_files_that_are_there():
    assert claims.PAGE.read_text(encoding='utf-8') == claims.page(), 'python docs/figures/claims.py'


def test_studies_have_the_models_that_claims_name():
    studies, files = ROOT / 'configs' / 'studies', dict(camvid700='backbones', pretraining_coco='pretraining')
    checked = set()
    for _, claim in LINES:
        name = claim['measured'].get('study')
        if name == 'camvid2100':  # of configs, by whose names it calls its models
            known = {path.stem for path in studies.glob('*.py')}
        elif name:
            known = set(yaml.safe_load((studies / f'{files.get(name, name)}.yml').read_text())['configs'])
        else:
            continue
        assert set(claim['measured']['difference']) <= known, claim
        checked.add(name)
    assert checked >= {'kernel_size', 'camvid700', 'shortcut', 'reparam', 'small_maps', 'dilated', 'roadmap'}


def test_each_step_of_the_road_is_compared_with_the_one_that_it_changes():
    steps = [claim['measured']['difference'] for _, claim in LINES if claim['measured'].get('study') == 'roadmap']
    order = list(yaml.safe_load((ROOT / 'configs' / 'studies' / 'roadmap.yml').read_text())['configs'])
    before = {'kernels 11x11': 'kernels 7x7', 'GELU': 'kernels 7x7'}  # the paper goes on from 7x7
    assert steps == [{after: 1, before.get(after, first): -1} for first, after in zip(order, order[1:])]


def test_measurements_have_the_samples_that_claims_name():
    produced = {
        'depthwise': {f'{k}x{k}, R = {side}' for k in (3, 31) for side in measure.DEPTHWISE[1]},
        'fast_parc': {f'{name}, n = {side}' for name in ('ParC', 'Fast-ParC') for side in measure.PARC[1]}
        | {'exponent of ParC', 'exponent of Fast-ParC'},
        'networks': {f'{name}, {size}' for size, _, names in measure.NETWORKS for name in names},
        'receptive_fields': set(measure.FIELDS)}
    named = {}
    for _, claim in LINES:
        measured = claim['measured']
        if 'record' in measured:
            named.setdefault(measured['record'], set()).update(measured.get('ratio') or measured['difference'])
    assert named.keys() == produced.keys() == {part.__name__ for part in measure.PARTS}
    for name, names in named.items():
        assert names <= produced[name]


@pytest.mark.parametrize('size', [3, 5])
def test_intervals_are_those_of_scipy(size):
    random = np.random.RandomState(size)
    first, second = random.normal(50, 3, size), random.normal(48, 1, size + 1)
    ours = claims.of_groups(dict(a=first, b=second), dict(a=1, b=-1))
    theirs = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert ours[:3] == pytest.approx((first.mean() - second.mean(), theirs.low, theirs.high))
    assert ours.n == f'{size} and {size + 1}'
    ours, theirs = claims.of_pairs(first), stats.ttest_1samp(first, 0).confidence_interval()
    assert ours == (pytest.approx(first.mean()), pytest.approx(theirs.low), pytest.approx(theirs.high), str(size))


def test_a_difference_of_differences_covers_the_truth():
    """19 of 20 intervals of four networks with three seeds each hold the value that the seeds were drawn around."""
    random, means = np.random.RandomState(0), dict(a=70, b=50, c=71, d=68)
    weights, inside = dict(a=1, b=-1, c=-1, d=1), 0
    for _ in range(1000):
        found = claims.of_groups({name: random.normal(mean, 1, 3) for name, mean in means.items()}, weights)
        inside += found.low < 17 < found.high
    assert 930 <= inside <= 975


@pytest.mark.parametrize('expect, low, high, said', [
    (dict(above=0), 0.1, 2, 'shows'), (dict(above=0), -0.1, 2, 'cannot'), (dict(above=0), -2, -0.1, 'does not'),
    (dict(above=71), 60, 70, 'does not'), (dict(below=0), -2, -0.1, 'shows'), (dict(below=1.5), 1.4, 1.6, 'cannot'),
    (dict(below=1.5), 1.6, 1.7, 'does not'), (dict(within=1), -0.9, 0.9, 'shows'),
    (dict(within=1), -0.9, 1.1, 'cannot'), (dict(within=1), -3, -1.1, 'does not'),
    (dict(above=0), None, None, 'cannot')])
def test_verdicts(expect, low, high, said):
    assert claims.verdict(claims.Interval(1, low, high, '3'), expect).startswith(said)


def test_an_unknown_expectation_is_refused():
    with pytest.raises(ValueError, match="expect is above, below or within, got 'over'"):
        claims.verdict(claims.Interval(1, 0, 2, '3'), dict(over=1))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ('studies', 'records'):
        (tmp_path / name).mkdir()
    (tmp_path / 'claims.yml').write_text((FIGURES / 'claims.yml').read_text(encoding='utf-8'), encoding='utf-8')
    monkeypatch.setattr(claims, 'FOLDER', tmp_path)
    monkeypatch.setattr(claims, 'PAGE', tmp_path / 'claims.md')
    return tmp_path


def rows():
    """The lines of the page by what they claim: (measured here, verdict)."""
    cells = [line.strip('| ').split(' | ') for line in claims.page().splitlines() if line.startswith('| ')]
    return {claim: (measured, said) for claim, _, measured, said in cells}


def test_lines_are_filled_from_a_study(folder, monkeypatch):
    values = {'3x3': [40, 41, 42], '7x7': [40, 42, 44], '13x13': [28, 28.5, 29], '31-29-27-13': [50, 51, 52]}
    (folder / 'report.json').write_text(json.dumps(report(values)))
    monkeypatch.setattr('sys.argv', ['claims.py', '--add', 'kernel_size', str(folder / 'report.json'),
                                     '--commit', 'abc1234'])
    claims.main()
    found = rows()
    low, high = stats.ttest_ind([50, 51, 52], [40, 41, 42], equal_var=False).confidence_interval()
    assert found['Kernels of 31-29-27-13 are better than 3x3'] == (
        f'+10.00 ({low:+.2f} to {high:+.2f}) points of mIoU, n = 3 seeds, `kernel_size`', 'shows at this scale')
    assert found['Kernels of 7x7 are better than 3x3'][1] == 'cannot be decided at this scale'
    assert found['Kernels of 13x13 are better than 7x7'][1] == 'does not show'
    assert found['Kernels of 13x13 need shortcuts'] == ('not yet run: `shortcut`', '–')
    text = (folder / 'claims.md').read_text(encoding='utf-8')
    assert 'commit abc1234; a machine; torch 2' in text
    assert '`python tools/compare.py configs/studies/kernel_size.yml --data-root DIR d`' in text
    kept = (folder / 'studies' / 'kernel_size.json').read_text(encoding='utf-8')
    assert '/mine' not in kept and '/yours' not in kept  # folders of the machine stay out


def test_one_seed_decides_nothing(folder):
    (folder / 'studies' / 'kernel_size.json').write_text(json.dumps(
        dict(report({name: [20] for name in ('3x3', '7x7', '13x13')} | {'31-29-27-13': [90]}), commit='c')))
    assert rows()['Kernels of 31-29-27-13 are better than 3x3'] == (
        '+70.00 points of mIoU, n = 1 seed, `kernel_size`', 'cannot be decided at this scale')


def test_a_model_that_a_study_lacks_is_named(folder):
    (folder / 'studies' / 'kernel_size.json').write_text(json.dumps(dict(report({'3x3': [1, 2]}), commit='c')))
    with pytest.raises(ValueError, match=r'studies/kernel_size\.json has no 31-29-27-13; it has 3x3'):
        claims.page()


def test_lines_are_filled_from_records(folder):
    facts = dict(command='python x.py', machine='m', versions={}, commit='c', date='2026-11-29')
    for name, kind, samples in (
            ('depthwise', 'turns', {f'{k}x{k}, R = {side}': seconds for side in (16, 32, 64)
                                    for k, seconds in ((3, [1.0, 1.1, 0.9]), (31, [1.2, 1.32, 1.09]))}),
            ('receptive_fields', 'images', {key: [0.9, 0.8] if key.startswith(('RepLK', 'ParC')) else [0.5, 0.42]
                                            for key in measure.FIELDS})):
        (folder / 'records' / f'{name}.json').write_text(json.dumps(dict(facts, samples_are=kind, samples=samples)))
    found = rows()
    measured, said = found['31x31 takes at most 1.5 times as long as 3x3 at R = 16']
    assert measured.startswith('1.20 (') and measured.endswith(') times the time of 3x3, n = 3 turns, `depthwise`')
    assert said == 'shows at this scale'
    measured, said = found['So it computes 71 times as many operations per second']
    assert (measured.split()[0], said) == ('88.71', 'shows at this scale')
    measured, _ = found['RepLKNet-31 sees more than ResNet-101']
    assert measured.startswith('+39.0 % (')
    assert measured.endswith(" of the image's area, n = 2 images, `receptive_fields`")


def test_exponents_are_slopes_of_logarithms():
    assert measure.slope({n: 5e-9 * n**3 for n in (56, 112, 224)}) == pytest.approx(3)
    assert 2 < measure.slope({n: n**2 * np.log(n) for n in (56, 112, 224)}) < 2.3


@pytest.mark.parametrize('part', [measure.depthwise, measure.fast_parc], ids=lambda part: part.__name__)
def test_a_part_gives_samples_of_every_turn(part):
    samples = part(torch.device('cpu'), True)
    assert {len(values) for values in samples.values()} == {3}
    assert all(value > 0 for name, values in samples.items() for value in values if not name.startswith('exponent'))


def test_quick_figures_stay_out_of_the_page(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['measure_claims.py', '--quick'])
    with pytest.raises(SystemExit):
        measure.main()
    assert '--quick needs --out DIR' in capsys.readouterr().err
