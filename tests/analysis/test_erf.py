import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.config import Config
from PIL import Image
from torch import nn

from mmlk.analysis import erf
from mmlk.analysis.erf import ErfNetwork, ReceptiveField
from mmlk.backbones import RepLKNet
from mmlk.datasets.images import find_images, packaged_photographs, read_image
from mmlk.preprocessors import IMAGENET_MEAN, IMAGENET_STD, Normalization
from mmlk.reparam import merge
from tests.utils import fill, image

REPO = Path(__file__).resolve().parents[2]
DEMO = 'configs/demo/upernet_replknet-tiny_ade20k.py'
FORMS = {
    '31': (128, dict(large_kernel_sizes=[31, 29, 27, 13], small_kernel=5)),
    'odd': (75, dict(large_kernel_sizes=[5, 5, 5, 5], small_kernel=3)),
}


@pytest.mark.parametrize('form', FORMS)
def test_scores_and_squares_are_those_of_the_official_scripts(form):
    size, arch = FORMS[form]
    net = fill(RepLKNet(dict(arch, layers=[1, 1, 2, 1], channels=[8, 16, 24, 32])))
    net.transitions[2][1].bn.weight.data.mul_(1e5)  # scores around 1, where the logarithm bends
    paths = {path.name: path for path in packaged_photographs()}
    images = [read_image(paths[name], size) for name in ('astronaut.png', 'camera.png', 'coffee.png', 'rocket.jpg')]
    field = erf.measure_erf(ErfNetwork(net), images, 3)
    with np.load(REPO / 'tests' / 'data' / 'erf.npz') as official:
        expected = official[f'{form}_scores']
        assert np.linalg.norm(field.scores - expected) < 1e-4 * np.linalg.norm(expected)  # ours in float32
        sides, ratios = official[f'{form}_squares'].T
    assert [side for side, _ in field.squares()] == sides.tolist()
    assert [ratio for _, ratio in field.squares()] == pytest.approx(ratios.tolist(), rel=1e-12)
    assert field.images == 4 and not any(p.requires_grad or p.grad is not None for p in net.parameters())


def test_receptive_field_of_ones_is_exact():
    """With weights of one, a pixel's score is the number of paths to the middle: boxes convolved with boxes."""
    layers = [(5, 1), (3, 2), (7, 1), (2, 2), (3, 1)]
    net = nn.Sequential(*(nn.Conv2d(1, 1, k, s, k // 2, bias=False) for k, s in layers)).double()
    for conv in net:
        nn.init.ones_(conv.weight)
    scores = erf.contribution(net, torch.ones(1, 1, 96, 83, dtype=torch.float64))
    paths, step, offset, jump = np.ones(1), 1, 0, 1
    for kernel, stride in layers:
        box = np.zeros(step * (kernel - 1) + 1)
        box[::step] = 1
        paths, offset, step = np.convolve(paths, box), offset + step * (kernel // 2), step * stride
        jump *= stride
    line = {}
    for axis, length in enumerate(scores.shape):
        middle = net(torch.ones(1, 1, *scores.shape).double()).shape[2 + axis] // 2
        line[axis] = np.zeros(length)
        line[axis][middle * jump - offset:][:len(paths)] = paths
    assert scores.tolist() == np.outer(line[0], line[1]).tolist()
    assert np.ptp(scores.any(axis=1).nonzero()) + 1 == len(paths) == 1 + 4 + 2 + 2 * 6 + 2 * 1 + 4 * 2


@pytest.mark.parametrize('size', [(96, 83), (83, 96), (64, 64), (37, 35)])
def test_the_middle_pixel_gives_the_field_of_the_middle(size):
    net = fill(nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3), nn.GELU(), nn.Conv2d(4, 4, 5, 3, 2)))
    x = image(1, 3, *size).requires_grad_()
    outputs = net(x)
    middle = outputs[:, :, outputs.shape[2] // 2, outputs.shape[3] // 2].relu().sum()
    expected = torch.autograd.grad(middle, x)[0].relu().sum((0, 1)).tolist()
    assert erf.contribution(net, x).tolist() == expected
    assert erf.contribution(net, x, (size[0] // 2, size[1] // 2)).tolist() == expected


def test_a_pixel_has_the_field_of_the_position_that_covers_it():
    """Of patches that do not overlap, the field of each pixel is its own patch."""
    net = nn.Conv2d(1, 1, (4, 3), (4, 3), bias=False)
    nn.init.ones_(net.weight)
    for row in range(12):
        for column in range(15):
            patch = np.zeros((12, 15))
            patch[row // 4 * 4:, column // 3 * 3:][:4, :3] = 1
            assert erf.contribution(net, torch.ones(1, 1, 12, 15), (row, column)).tolist() == patch.tolist()


def test_merged_networks_and_memory_formats_have_the_same_field_at_a_pixel():
    net = fill(RepLKNet(dict(large_kernel_sizes=[13, 13], small_kernel=5, layers=[1, 1], channels=[8, 16]),
                        out_indices=(1, ))).eval()
    x = image(1, 3, 96, 64)
    forms = [erf.contribution(lambda x: form(x)[-1], inputs, (80, 5))
             for form in (net, merge(net), merge(net).to(memory_format=torch.channels_last))
             for inputs in (x, x.to(memory_format=torch.channels_last))]
    assert forms[0][60:].sum() > 2 * forms[0][:36].sum() > 0
    for form in forms[1:]:
        assert np.linalg.norm(form - forms[0]) < 1e-4 * np.linalg.norm(forms[0])


class Stages(nn.Module):
    """Three maps, each by a 3x3 convolution of ones with stride 2."""

    def __init__(self, out_indices=None):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, 2, 1, groups=3, bias=False) for _ in range(3))
        for conv in self.convs:
            nn.init.ones_(conv.weight)
        if out_indices is not None:
            self.out_indices = out_indices

    def forward(self, x):
        maps = []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return tuple(maps[i] for i in getattr(self, 'out_indices', range(3)))


WHITE = np.full((64, 64, 3), 255, np.uint8)


def reach(field):
    return int(np.ptp(field.scores.any(axis=1).nonzero())) + 1


def test_every_stage_has_its_own_field():
    network = ErfNetwork(Stages())
    assert network.check(64) == (2, (1, 3, 8, 8))
    assert [reach(erf.measure_erf(network, [WHITE], stage)) for stage in range(3)] == [3, 7, 15]


def test_stages_go_by_the_names_the_backbone_has():
    network = ErfNetwork(Stages(out_indices=(1, 2)))
    assert network.check(64, 1) == (1, (1, 3, 16, 16)) and reach(erf.measure_erf(network, [WHITE], 1)) == 7
    with pytest.raises(ValueError, match='has no stage 0; it returns 1, 2'):
        network.check(64, 0)


def test_a_size_that_is_refused_is_said_before_any_work():
    class Patches(nn.Module):
        def forward(self, x):
            return x.reshape(1, 3, 32, 32)

    with pytest.raises(ValueError, match='does not take images of 64 x 64: .*invalid for input'):
        ErfNetwork(Patches()).check(64)
    with pytest.raises(ValueError, match='has no map at stage 0'):
        ErfNetwork(nn.Flatten()).check(64)


def test_squares_are_around_the_middle_and_the_least():
    shares = np.zeros((10, 12))
    shares[5, 6], shares[3, 6], shares[5, 2] = 6, 3, 1  # two above, four to the left
    assert erf.square(shares, 0.5) == (3, 9 / 120)  # no square is smaller, as in the official script
    assert erf.square(shares, 0.6) == (5, 25 / 120)  # more than t, not as much as t
    assert erf.square(shares, 0.9) == (9, 81 / 120)
    shares[0, 0] = 90
    assert erf.square(shares, 0.2) == (10, 1)


def test_scores_are_shown_on_a_logarithmic_scale():
    field = ReceptiveField(np.array([[0., 9.], [99., 999.]]), 1)
    assert field.shown == pytest.approx(np.array([[0, 1 / 3], [2 / 3, 1]]))


def test_nan_is_left_out_and_nothing_at_all_is_said():
    class Fails(nn.Module):
        def forward(self, x):
            return x * torch.where(x.mean() > 0, 1., torch.nan)

    black = np.zeros_like(WHITE)
    field = erf.measure_erf(ErfNetwork(Fails()), [WHITE, black, WHITE], 0)
    assert (field.images, field.skipped) == (2, 1) and field.scores.sum() == field.scores[32, 32] == 3
    with pytest.raises(ValueError, match='none of 1 images gave scores without NaN'):
        erf.measure_erf(ErfNetwork(Fails()), [black], 0)
    with pytest.raises(ValueError, match='nothing contributes to the middle of stage 0'):
        erf.measure_erf(ErfNetwork(nn.ReLU()), [black], 0)


def test_a_network_gets_the_images_it_was_trained_on_and_scores_stay_comparable():
    """Fed with blue first, from 0 to 255, it must see those numbers; its scores are per deviation of ImageNet's."""
    seen = []

    class Sees(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return x * torch.tensor([1., 2., 3.])[:, None, None]

    pixel = np.full((8, 8, 3), (10, 20, 30), np.uint8)
    field = erf.measure_erf(ErfNetwork(Sees(), Normalization((1, 2, 3), (1, 1, 10), bgr=True)), [pixel], 0)
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([29, 18, 0.7], rel=1e-4)
    red, green, blue = IMAGENET_STD
    assert field.scores[4, 4] == pytest.approx(blue * 1 + green * 2 + red / 10 * 3)
    erf.measure_erf(ErfNetwork(Sees()), [pixel + 120], 0)
    expected = (np.array([130, 140, 150]) - IMAGENET_MEAN) / IMAGENET_STD
    assert seen[1][0, :, 0, 0].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
RESNET = dict(type='ResNet', depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'))


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
def test_any_config_with_a_backbone(scope):
    """Stock ones too, with their own normalisation, and without fetching weights that nobody asked for."""
    cfg = Config(dict(default_scope=scope, model=dict(data_preprocessor=CAFFE, backbone=RESNET)))
    network = erf.erf_from_config(cfg, initialise=True)
    assert network.normalization == ((103.53, 116.28, 123.675), (1, 1, 1), True)
    assert network.check(64) == (3, (1, 512, 2, 2))
    assert all(block.bn2.weight.eq(1).all() for block in network.backbone.layer4)  # mmdet's start at zero
    conv = network.backbone.layer4[1].conv1.weight
    assert conv.std() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)  # its own start, not PyTorch's
    assert cfg.model.backbone.init_cfg.type == 'Pretrained'
    for given, expected in [(dict(type='Any'), ((0, 0, 0), (1, 1, 1), True)),
                            (None, (IMAGENET_MEAN, IMAGENET_STD, False))]:
        cfg.model.data_preprocessor = given
        network = erf.erf_from_config(cfg, initialise=False)
        assert network.normalization == expected
    for model, problem in [({}, 'the config has no backbone'),
                           (dict(backbone=dict(type='Nothing')), 'cannot be built: .*Nothing'),
                           (dict(backbone=dict(RESNET, depth=19)), 'cannot be built: .*19')]:
        with pytest.raises(ValueError, match=problem):
            erf.erf_from_config(Config(dict(default_scope=scope, model=model)), initialise=True)


@pytest.mark.parametrize('name, mean, shape', [
    ('resnet18', IMAGENET_MEAN, (1, 512, 3, 3)),
    ('swin_tiny_patch4_window7_224', IMAGENET_MEAN, (1, 768, 3, 3)),
    ('tf_efficientnet_lite0', (127.5, 127.5, 127.5), (1, 320, 3, 3)),
])
def test_models_of_timm(name, mean, shape):
    network = erf.erf_from_timm(name, initialise=True)
    assert network.normalization.mean == mean and not network.normalization.bgr and network.check(96)[1] == shape


def test_branches_that_start_at_zero_are_opened():
    """Else the field of timm's ResNet at random weights is that of its shortcuts, eleven pixels."""
    network = erf.erf_from_timm('resnet18', initialise=False)
    noise = [np.random.RandomState(0).randint(0, 256, (96, 96, 3)).astype(np.uint8)]
    assert reach(erf.measure_erf(network, noise, 3)) <= 11
    assert erf.open_branches(network.backbone) == 8
    assert reach(erf.measure_erf(network, noise, 3)) > 60
    layer = nn.ParameterDict(dict(gamma=nn.Parameter(torch.full((4, 1, 1), 1e-6)), bias=nn.Parameter(torch.zeros(4)),
                                  weight=nn.Parameter(torch.zeros(4, 4)), cls_token=nn.Parameter(torch.zeros(1, 1, 4))))
    assert erf.open_branches(layer) == 1 and layer['gamma'].tolist() == [[[1.]]] * 4


def test_images_are_found_and_read(tmp_path):
    (tmp_path / 'b').mkdir()
    Image.new('RGB', (30, 20), (255, 0, 0)).save(tmp_path / 'b' / '1.PNG')
    Image.new('L', (20, 30), 7).save(tmp_path / 'a.jpg')
    (tmp_path / 'notes.txt').write_text('no image')
    assert [path.name for path in find_images(tmp_path)] == ['a.jpg', '1.PNG']
    assert read_image(tmp_path / 'b' / '1.PNG', 16)[3].tolist() == [[255, 0, 0]] * 16
    assert read_image(tmp_path / 'a.jpg', 16).shape == (16, 16, 3)
    assert len(packaged_photographs()) >= 4


def test_heat_maps_share_one_scale_and_table_is_markdown():
    wide, narrow = np.ones((32, 32)), np.zeros((32, 32))
    narrow[15:18, 15:18] = 9
    fields = dict(wide=ReceptiveField(wide, 1), narrow=ReceptiveField(narrow, 1))
    figure = erf.heat_maps(fields)
    FigureCanvasAgg(figure).draw()
    shown = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(shown) == ['wide', 'narrow']
    assert {axes.images[0].get_clim() for axes in shown.values()} == {(0, 1)}
    assert [patch.get_width() for patch in shown['narrow'].patches] == [3, 3, 3, 3]
    assert erf.table(fields).splitlines()[-1] == '| narrow' + 4 * ' | 0.9% (3)' + ' |'
    over_decades = erf.heat_maps(fields, decades=3).axes[0].images[0].norm
    assert [over_decades(value) for value in (1e-5, 1e-3, 1e-2, 1)] == pytest.approx([0, 0, 1 / 3, 1])
    with pytest.raises(ValueError, match='no receptive field to draw'):
        erf.heat_maps({})


@pytest.fixture
def run(monkeypatch, capsys):
    """The tool, called in this process; what it printed, its status and messages first."""
    spec = importlib.util.spec_from_file_location('erf_tool', REPO / 'tools' / 'erf.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.chdir(REPO)

    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['erf.py', '--device', 'cpu', *map(str, args)])
        status = 0
        try:
            tool.main()
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.err + printed.out
    return call


def test_tool_compares_networks(run, tmp_path):
    net = RepLKNet(Config.fromfile(str(REPO / DEMO)).model.backbone.arch)
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in fill(net).state_dict().items()}),
               tmp_path / 'segmentor.pth')
    status, out = run(DEMO, tmp_path / 'segmentor.pth', '--config2', DEMO, '--config2', 'timm:resnet18', '--names',
                      'filled', 'random', 'ResNet-18', '--size', 96, '--num-images', 2, '--stage', 2, '--out',
                      tmp_path / 'out')
    assert status == 0, out
    assert len(out.splitlines()) < 40, out  # the report of the weights, no log of every parameter's start
    rows = re.findall(r'^\| (filled|random|ResNet-18) \|(?: [\d.]+% \(\d+\) \|){4}$', out, re.MULTILINE)
    assert rows == ['filled', 'random', 'ResNet-18']
    report = json.loads((tmp_path / 'out' / 'erf.json').read_text())
    assert report['images'] == ['astronaut.png', 'camera.png'] and report['size'] == 96
    assert [network['checkpoint'] for network in report['networks']] == [
        str(tmp_path / 'segmentor.pth'), 'random, seed 0', 'random, seed 0']
    assert [network['map'] for network in report['networks']] == [[96, 6, 6], [96, 6, 6], [256, 6, 6]]
    images = [read_image(path, 96) for path in packaged_photographs()[:2]]
    expected = erf.measure_erf(ErfNetwork(net), images, 2)
    np.testing.assert_allclose(np.load(tmp_path / 'out' / 'filled.npy'), expected.scores, rtol=1e-3)
    assert report['networks'][0]['squares']['0.5']['side'] == expected.squares()[2][0]
    assert Image.open(tmp_path / 'out' / 'erf.png').size[0] > 900


def test_bad_input_ends_in_one_message(run, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'corrupt').mkdir()
    picture = tmp_path / 'corrupt' / 'cut.png'
    Image.open(packaged_photographs()[0]).save(picture)
    picture.write_bytes(picture.read_bytes()[:5000])
    (tmp_path / 'bare.py').write_text('optim_wrapper = dict()')
    torch.save(dict(state_dict=nn.Linear(2, 2).state_dict()), tmp_path / 'other.pth')
    for arguments, problem in [
        ([DEMO, '--images', tmp_path / 'none'], 'no folder .*none'),
        ([DEMO, '--images', tmp_path / 'empty'], 'no image in .*empty'),
        ([DEMO, '--images', tmp_path / 'corrupt'], 'cut.png cannot be read as an image'),
        ([tmp_path / 'none.py'], 'no config at .*none.py'),
        ([DEMO, '--config2', tmp_path / 'bare.py'], 'bare.py: the config has no backbone'),
        ([DEMO, '--stage', 4], 'has no stage 4; it returns 0, 1, 2, 3'),
        ([DEMO, tmp_path / 'none.pth'], "no weights '.*none.pth'"),
        ([DEMO, tmp_path / 'other.pth'], 'tensors of RepLKNet were not filled'),
        (['timm:resnet1000'], "timm:resnet1000: the backbone cannot be built: .*no model 'resnet1000'"),
        ([DEMO, '--config2', DEMO], '--names must be 2 different names'),
        ([DEMO, '--config2', DEMO, 'a.pth', 'b.pth'], '--config2 takes a config and at most one checkpoint'),
        ([DEMO, '--num-images', 0], '--num-images must be at least 1'),
        ([DEMO, '--size', 4], '--size must be at least 8'),
        ([DEMO, '--decades', 0], '--decades must be above 0'),
        ([DEMO, '--device', 'abacus'], '--device abacus: .*abacus'),
        ([DEMO, '--out', tmp_path / 'bare.py'], '--out .*bare.py'),
    ]:
        status, out = run('--out', tmp_path / 'out', *arguments)
        assert status == 2 and re.search(problem, out), (arguments, out)
    assert not (tmp_path / 'out').exists()
