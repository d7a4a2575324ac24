import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from PIL import Image
from torch import nn

from mmlk.analysis import cam
from mmlk.analysis.cam import LAST_MAP, Choice, ClassifierSubject, Sample, Subject
from mmlk.analysis.classifiers import Classifier, WithHead
from mmlk.engine.network import build_network
from tests.utils import fill

REPO = Path(__file__).resolve().parents[2]
UPERNET = 'configs/demo/upernet_replknet-tiny_ade20k.py'
MASK_RCNN = 'configs/demo/mask_rcnn_replknet-tiny_coco.py'

needs_library = pytest.mark.skipif(find_spec('pytorch_grad_cam') is None,
                                   reason='pytorch-grad-cam is not installed: pip install grad-cam')


@pytest.fixture
def photograph(tmp_path):
    """A picture of squares, 120 wide and 96 high."""
    path = tmp_path / 'photograph.png'
    squares = np.random.RandomState(0).randint(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(squares).resize((120, 96), Image.BICUBIC).save(path)
    return path


class Backbone(nn.Module):
    """Two maps: at strides 4 and 8."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 6, 2, 2)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        first = self.first(x)
        second = self.second(first)
        return first, self.act(second)


def classifier_subject(size=64):
    network = fill(WithHead(Backbone(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 1000))))
    return ClassifierSubject(Classifier(network, '', 'seed', size))


def over(coarse, width, height):
    """A map as the library enlarges it: without what is negative, from 0 to 1 before and after."""
    heat = coarse.clamp_min(0).numpy()
    for size in (None, (width, height)):
        heat = cv2.resize(heat, size) if size else heat
        heat = heat - heat.min()
        heat = heat / max(heat.max(), 1e-7)
    return heat


@needs_library
def test_the_map_of_a_classifier_is_its_weights_over_the_last_map(photograph):
    # with a mean and a linear layer, Grad-CAM is CAM: the map weighted with the class's row
    subject = classifier_subject()
    sample = subject.sample(photograph)
    network = subject.network
    with torch.no_grad():
        maps = network.backbone((sample.inputs - torch.tensor([123.675, 116.28, 103.53])[:, None, None]) /
                                torch.tensor([58.395, 57.12, 57.375])[:, None, None])[-1]
        logits = network.head(maps)
    for label in (None, 7, 8):
        choice, found = cam.explain(subject, sample, [LAST_MAP, 'backbone.second'], 'gradcam', label)
        assert choice.label == (logits.argmax() if label is None else label)
        assert choice.found == f'probability {logits.softmax(1)[0, choice.label]:.3f}'
        weights = network.head[2].weight[choice.label]
        coarse = torch.einsum('c,chw->hw', weights, maps[0])
        assert np.abs(found[LAST_MAP] - over(coarse, 64, 64)).max() < 1e-4
        # before the activation: its gradient is zero where the activation cut off
        gradients = weights[:, None, None] * (maps[0] > 0) / maps[0, 0].numel()
        with torch.no_grad():
            before = network.backbone.second(network.backbone.first(
                (sample.inputs - torch.tensor([123.675, 116.28, 103.53])[:, None, None]) /
                torch.tensor([58.395, 57.12, 57.375])[:, None, None]))[0]
        coarse = torch.einsum('c,chw->hw', gradients.mean((1, 2)), before)
        assert np.abs(found['backbone.second'] - over(coarse, 64, 64)).max() < 1e-4
    assert not any(p.grad is not None for p in network.parameters())


def config_subject(config, threshold=0.3):
    cfg = Config.fromfile(str(REPO / config))
    return cam.subject_from_config(cfg, fill(build_network(cfg)), threshold)


def expected_map(subject, sample, score):
    """Grad-CAM of the last map, by autograd, for a score that the test itself makes of the output."""
    kept = []
    hook = subject._probe.register_forward_hook(lambda module, args, out: kept.append(out))
    output = subject(sample.inputs.clone().requires_grad_())[0]
    hook.remove()
    gradient, = torch.autograd.grad(score(output), kept[0])
    with torch.no_grad():
        coarse = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1)[0]
        heat = over(coarse, *sample.inputs.shape[:1:-1])
    heat = cv2.resize(heat[:sample.inside[0], :sample.inside[1]], sample.image.shape[1::-1])
    return heat / max(heat.max(), 1e-7)


@needs_library
def test_the_map_of_a_segmentor(photograph):
    subject = config_subject(UPERNET)
    assert subject.classes == ['ground', 'disc', 'ring', 'square', 'bar', 'cross']
    sample = subject.sample(photograph)
    assert sample.image.shape == (96, 120, 3) and sample.inside == (80, 100) and sample.inputs.shape[2:] == (80, 100)
    with torch.no_grad():
        logits = subject(sample.inputs)[0][:, :80, :100]
    labels = logits.argmax(0)
    choice, maps = cam.explain(subject, sample, [LAST_MAP])
    assert choice.label == labels.mode().values.mode().values or choice.label == labels.flatten().bincount().argmax()
    assert np.array_equal(choice.region[:80, :100], labels == choice.label) and not choice.region[80:].any()
    assert choice.found == f'of {(labels == choice.label).float().mean():.1%} of the pixels'
    present = labels.unique().tolist()
    assert len(present) > 1
    for label in present:
        choice, maps = cam.explain(subject, sample, [LAST_MAP], label=label)
        expected = expected_map(subject, sample, lambda output: output[label][labels == label].sum())
        others = expected_map(subject, sample, lambda output: output[label].sum())  # of all pixels, and another map
        assert np.abs(maps[LAST_MAP] - expected).max() < 1e-3 and np.abs(expected - others).max() > 1e-2
    assert maps[LAST_MAP].shape == (96, 120) and maps[LAST_MAP].max() == pytest.approx(1)

    absent = [label for label in range(6) if not (labels == label).any()]
    largest = []
    for label in absent:
        choice, maps = cam.explain(subject, sample, [LAST_MAP], label=label)
        assert choice.region is None and choice.found == 'of no pixel'
        expected = expected_map(subject, sample, lambda output: output[label].sum())
        assert np.abs(maps[LAST_MAP] - expected).max() < 1e-3
        largest.append(maps[LAST_MAP].max())
    assert any(largest)


@needs_library
def test_the_map_of_a_network_whose_backbone_is_frozen(photograph):
    """It records no gradients otherwise."""
    subject = config_subject('configs/probe/linear_efficientnet-lite0_demo.py')
    sample = subject.sample(photograph)
    choice, maps = cam.explain(subject, sample, [LAST_MAP])
    region = torch.from_numpy(choice.region)
    expected = expected_map(subject, sample, lambda output: output[choice.label][region].sum())
    assert np.abs(maps[LAST_MAP] - expected).max() < 1e-3 and expected.std() > 0.01
    assert not subject(sample.inputs).requires_grad


@needs_library
def test_the_map_of_a_detector(photograph):
    subject = config_subject(MASK_RCNN, threshold=0.0)
    assert subject.classes == ['disc', 'ring', 'square', 'bar', 'cross']
    sample = subject.sample(photograph)
    found = cam.explain(subject, sample, [LAST_MAP])
    assert found is not None
    choice, maps = found
    with torch.no_grad():
        instances = subject(sample.inputs)[0]
    assert choice.label == instances.labels[0] and len(choice.boxes) == (instances.labels == choice.label).sum()
    assert choice.boxes[:, 2].max() <= 120 and choice.boxes[:, 3].max() <= 96  # in pixels of the file
    expected = expected_map(subject, sample, lambda output: output.scores[output.labels == choice.label].sum())
    assert np.abs(maps[LAST_MAP] - expected).max() < 1e-3
    subject.threshold = 1.1
    assert cam.explain(subject, sample, [LAST_MAP]) is None


@MODELS.register_module(name='CamTestClassifier')
class BaseClassifier(BaseModel):
    """Named and called as mmpretrain's."""

    def __init__(self, backbone, num_classes, data_preprocessor):
        super().__init__(data_preprocessor)
        self.backbone, self.head = Backbone(), nn.Linear(6, num_classes)
        self.head.num_classes = num_classes

    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert mode == 'tensor'
        return self.head(self.backbone(inputs)[-1].mean((2, 3)))


@needs_library
def test_a_classifier_of_a_config(photograph):
    cfg = Config.fromfile(str(REPO / UPERNET))
    cfg.model = dict(type='CamTestClassifier', backbone=dict(type='X'), num_classes=12,
                     data_preprocessor=cfg.model.data_preprocessor)
    cfg.test_dataloader.dataset = dict(dataset=dict(pipeline=cfg.test_pipeline))
    subject = cam.subject_from_config(cfg, fill(build_network(cfg)))
    sample = subject.sample(photograph)
    choice, maps = cam.explain(subject, sample, [LAST_MAP])
    with torch.no_grad():
        probabilities = subject(sample.inputs)[0].softmax(0)
    assert subject.classes == [str(i) for i in range(12)]
    assert choice.label == probabilities.argmax() and choice.found == f'probability {probabilities.max():.3f}'
    expected = expected_map(subject, sample, lambda output: output[int(probabilities.argmax())])
    assert np.abs(maps[LAST_MAP] - expected).max() < 1e-3


@needs_library
@pytest.mark.parametrize('method', cam.METHODS)
def test_methods(method, photograph):
    subject = classifier_subject()
    _, maps = cam.explain(subject, subject.sample(photograph), [LAST_MAP], method)
    assert maps[LAST_MAP].shape == (64, 64) and 0 <= maps[LAST_MAP].min() < maps[LAST_MAP].max() <= 1 + 1e-6


@pytest.mark.parametrize('shape, index, value', [
    ((1, 5, 6, 8), (2, 3, 4), (0, 2, 3, 4)),  # channels first
    ((1, 6, 8, 5), (2, 3, 4), (0, 3, 4, 2)),  # channels last
    ((1, 48, 5), (2, 3, 4), (0, 3 * 8 + 4, 2)),  # tokens
    ((1, 49, 5), (2, 3, 4), (0, 1 + 3 * 8 + 4, 2)),  # after one of the class
])
def test_layouts_of_maps(shape, index, value):
    out = torch.arange(240 if len(shape) > 3 or shape[1] == 48 else 245).reshape(shape)
    seen = cam._view('x', [out], (96, 123))(out)  # 123 / 16 is 7.7, a map of 8
    assert seen.shape == (1, 5, 6, 8) and seen[0][index] == out[value]


@pytest.mark.parametrize('outputs, problem', [
    ([], "'x' is not run itself"),
    ([torch.zeros(1)] * 2, "'x' runs 2 times"),
    ([(torch.zeros(1), )], "'x' gives a tuple"),
    ([torch.zeros(1, 47, 5)], "'x' gives 1x47x5, which is no map of an image of 96x123"),
    ([torch.zeros(100, 5, 7, 7)], "'x' gives 100x5x7x7, which is no map"),
])
def test_outputs_that_are_no_maps(outputs, problem):
    with pytest.raises(ValueError, match=problem):
        cam._view('x', outputs, (96, 123))


@needs_library
def test_a_layer_without_influence(photograph):
    class Aside(Backbone):
        def forward(self, x):
            self.act(self.second(self.first(x)))
            return (x, )

    network = WithHead(Aside(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000)))
    subject = ClassifierSubject(Classifier(network, '', 'seed', 64))
    with pytest.raises(ValueError, match="'backbone.first' has no influence on the score of"):
        cam.explain(subject, subject.sample(photograph), ['backbone.first'])


def test_names_of_layers_and_classes():
    subject = Subject(fill(Backbone()), ['cat', 'dog', '7'], None)
    assert subject.layer('first') is subject.network.first and subject.label('dog') == 1
    assert subject.label('0') == 0 and subject.label('7') == 2  # a name counts before a number
    for name, near in {'frist': 'first', 'backbone.third': 'first, second, act', '': 'first, second, act'}.items():
        with pytest.raises(ValueError, match=f"Backbone has no layer '{name}'; there is {near}"):
            subject.layer(name)
    inside = Subject(WithHead(Backbone(), nn.Identity()), ['cat'], None)
    with pytest.raises(ValueError, match="no layer 'second'; there is backbone.second$"):
        inside.layer('second')
    for name in ('cart', '3', '-1'):
        with pytest.raises(ValueError, match=f"no class '{name}' among 3; there is cat"):
            subject.label(name)


@needs_library
def test_overlays_and_grid():
    image = np.full((60, 80, 3), 100, np.uint8)
    sample = Sample(image, torch.zeros(1, 3, 40, 64), (30, 40))
    heat = np.zeros((60, 80), np.float32)
    heat[40:, 50:] = 1
    region = np.zeros((40, 64), bool)
    region[10:20, 10:20] = True
    picture = cam.overlay_heat(sample, heat, Choice(0, '', region=region))
    assert picture[50, 70, 0] > picture[50, 70, 2] and picture[5, 5, 2] > picture[5, 5, 0]  # red is hot
    white = np.argwhere((picture == 255).all(2))
    assert white.min(0).tolist() == [20, 20] and white.max(0).tolist() == [39, 39]
    boxed = cam.overlay_heat(sample, heat, Choice(0, '', boxes=np.array([[3.2, 4.1, 20.8, 30.2]])))
    white = np.argwhere((boxed == 255).all(2))
    assert white.min(0).tolist() == [4, 3] and white.max(0).tolist() == [30, 21]
    figure = cam.grid([cam.CamRow(image, 'a', {'one': picture, 'two': boxed}),
                       cam.CamRow(image, 'b', {'one': picture})])
    FigureCanvasAgg(figure).draw()
    assert [ax.get_title() for ax in figure.axes] == ['a', 'one', 'two', 'b', 'one', '']
    with pytest.raises(ValueError, match='nothing to draw'):
        cam.grid([])


@pytest.mark.parametrize('change, problem', [
    (dict(model=dict(type='X')), 'the config has no backbone'),
    (dict(model=dict(type='NoModel', backbone=dict(type='X'))), 'the model cannot be built.*NoModel'),
])
def test_configs_that_cannot_be_built(change, problem):
    with pytest.raises(ValueError, match=problem):
        build_network(Config(change))


def test_configs_without_images_or_of_other_kinds():
    cfg = Config.fromfile(str(REPO / UPERNET))
    network = build_network(cfg)
    bare = Config(dict(model=cfg.model, default_scope='mmseg'))
    with pytest.raises(ValueError, match='the config has no test pipeline'):
        cam.subject_from_config(bare, network)
    with pytest.raises(ValueError, match='Backbone is no segmentor, detector or classifier'):
        cam.subject_from_config(cfg, Backbone())


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['cam.py', *map(str, args)])
    runpy.run_path(str(REPO / 'tools' / 'cam.py'), run_name='__main__')


@needs_library
def test_tool(photograph, tmp_path, monkeypatch, capsys):
    cfg = Config.fromfile(str(REPO / UPERNET))
    torch.save(fill(build_network(cfg)).state_dict(), tmp_path / 'weights.pth')
    folder = tmp_path / 'folder'
    folder.mkdir()
    for target in (folder / 'photograph.png', folder / 'second.jpg'):
        Image.open(photograph).save(target)
    run(monkeypatch, REPO / UPERNET, tmp_path / 'weights.pth', photograph, folder, '--out', tmp_path / 'out', '--layer',
        'backbone.stages.3.norm', 'decode_head.fpn_bottleneck', '--target', 'ring', '--device', 'cpu')
    report = json.loads((tmp_path / 'out' / 'cam.json').read_text())
    assert [facts['target'] for facts in report['images']] == ['ring'] * 3 and report['method'] == 'gradcam'
    files = [drawn['file'] for facts in report['images'] for drawn in facts['layers'].values()]
    assert files[0] == '0_photograph_backbone.stages.3.norm.png'
    assert files[-1] == 'second_decode_head.fpn_bottleneck.png'
    assert all(Image.open(tmp_path / 'out' / file).size == (120, 96) for file in files) and len(set(files)) == 6
    with np.load(tmp_path / 'out' / 'cam.npz') as heats:
        assert {f'{name}.png' for name in heats} == set(files) and heats[files[0][:-4]].shape == (96, 120)
    assert Image.open(tmp_path / 'out' / 'grid.png').size > (500, 500)
    assert 'random' not in capsys.readouterr().out

    torch.save(timm.create_model('test_resnet').state_dict(), tmp_path / 'timm.pth')
    run(monkeypatch, 'timm:test_resnet', tmp_path / 'timm.pth', photograph, '--out', tmp_path / 'timm',
        '--device', 'cpu')
    facts, = json.loads((tmp_path / 'timm' / 'cam.json').read_text())['images']
    assert list(facts['layers']) == ['stages.3'] or len(facts['layers']) == 1
    assert Image.open(tmp_path / 'timm' / 'photograph.png').size == (160, 160)


@needs_library
@pytest.mark.parametrize('args, problem', [
    (['missing.jpg'], 'there is no file missing.jpg'),
    (['EMPTY'], 'no image in'),
    (['CORRUPT'], 'corrupt.png cannot be read as an image'),
    (['missing.pth', 'PHOTOGRAPH'], "no weights 'missing.pth'"),
    (['PHOTOGRAPH', '--layer', 'backbone.stages.9'],
     "EncoderDecoder has no layer 'backbone.stages.9'; there is backbone"),
    (['PHOTOGRAPH', '--target', 'rink'], "no class 'rink' among 6; there is ring"),
    (['PHOTOGRAPH', '--cfg-options', 'model.backbone=None'], 'the config has no backbone'),
])
def test_tool_says_what_is_wrong_before_any_work(args, problem, photograph, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cam, 'explain', None)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'corrupt.png').write_bytes(photograph.read_bytes()[:60])
    paths = dict(PHOTOGRAPH=photograph, EMPTY=tmp_path / 'empty', CORRUPT=tmp_path / 'corrupt.png')
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, REPO / UPERNET, *(paths.get(arg, arg) for arg in args), '--out', tmp_path / 'out')
    assert end.value.code == 2 and not (tmp_path / 'out').exists()
    error = capsys.readouterr().err
    assert problem in error and len(error.splitlines()) == 1


def test_tool_without_the_library(monkeypatch, capsys, photograph):
    monkeypatch.setattr('mmlk.cli.cam.find_spec', lambda name: None)
    with pytest.raises(SystemExit):
        run(monkeypatch, REPO / UPERNET, photograph)
    assert 'error: pytorch-grad-cam is not installed: pip install grad-cam' in capsys.readouterr().err
