import importlib.util
import json
import math
import re
import sys

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmlk.analysis import complexity, zoo
from mmlk.analysis.complexity import breakdown, build_on_meta, compare_forms, count, parse_size
from mmlk.backbones.replknet import RepLKNet
from mmlk.engine.network import check_backbone

CITYSCAPES, COCO = (1024, 2048), (800, 1280)
# Rows of the model zoo whose published parameters and FLOPs the counter meets: of ours, and of others by the same
# conventions, attention's matrix products included, so that the counter is not fitted to one backbone.
PUBLISHED = (
    'upernet_replknet31b_ade20k', 'upernet_replknet31b-22k_ade20k', 'upernet_replknet31l-22k_ade20k',
    'upernet_replknetxl_ade20k', 'cascade_mask_rcnn_replknet31b_coco', 'cascade_mask_rcnn_replknet31b-22k_coco',
    'cascade_mask_rcnn_replknet31l-22k_coco', 'cascade_mask_rcnn_replknetxl_coco', 'upernet_swin-b_ade20k',
    'mask_rcnn_swin-t_coco', 'cascade_mask_rcnn_swin-b_coco',
)


def published(repo, name):
    """Height and width, and the published parameters (M) and FLOPs (G)."""
    [row] = [row for row in zoo.rows(zoo.read(repo)) if row['Name'] == name]
    return zoo.image_size(row), row['Published']['Parameters (M)'], row['Published']['FLOPs (G)']


def counted(repo, name, size, merged=True):
    result = count(build_on_meta(Config.fromfile(str(repo / 'configs' / f'{name}.py')), merged), size)
    return result.parameters / 1e6, result.macs / 1e9


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_rows(repo, name):
    size, parameters, flops = published(repo, name)
    assert counted(repo, name, size) == (pytest.approx(parameters, rel=0.01), pytest.approx(flops, rel=0.01))


def test_fcos_comes_out_in_training_form(repo):
    """We count 434.1G unmerged, which is within 1 % of the published figure, and 432.6G merged: 1.02 % less."""
    size, parameters, flops = published(repo, 'fcos_replknet31b_coco')
    assert size == COCO and counted(repo, 'fcos_replknet31b_coco', COCO, merged=False) == (
        pytest.approx(parameters, rel=0.01), pytest.approx(flops, rel=0.01))
    assert counted(repo, 'fcos_replknet31b_coco', COCO) == (
        pytest.approx(86.83, abs=0.01), pytest.approx(432.6, abs=0.1))


def test_cityscapes_parameters_do_not_come_out(repo):
    """They are published as 2M fewer than on ADE20K; the same network with 131 classes fewer cannot be that small."""
    size, fewer, theirs = published(repo, 'upernet_replknet31b_cityscapes')
    parameters, flops = counted(repo, 'upernet_replknet31b_cityscapes', CITYSCAPES)
    assert size == CITYSCAPES and flops == pytest.approx(theirs, rel=0.01) and parameters - fewer > 1.5
    assert parameters == pytest.approx(111.75, abs=0.01)
    ade, _ = counted(repo, 'upernet_replknet31b_ade20k', CITYSCAPES)
    assert ade - parameters == pytest.approx((150 - 19) * (512 + 1) / 1e6)


@pytest.mark.parametrize('layer, shape, macs', [
    (nn.Conv2d(6, 8, 3, stride=2, padding=1), (6, 17, 20), 9 * 10 * 8 * 6 * 9),
    (nn.Conv2d(6, 6, (5, 3), padding=(2, 1), groups=6), (6, 17, 20), 17 * 20 * 6 * 15),
    (nn.ConvTranspose2d(6, 8, 2, stride=2), (6, 17, 20), 17 * 20 * 6 * 8 * 4),
    (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 11)), (6, 17, 20), 6 * 11),
    (nn.Sequential(nn.BatchNorm2d(6), nn.GELU(), nn.Upsample(scale_factor=2)), (6, 17, 20), 0),
])
def test_layers_cost_what_their_formula_says(layer, shape, macs):
    channels, *size = shape
    result = count(layer, tuple(size), channels)
    assert result.macs == macs
    assert result.parameters == sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize('merged', [False, True])
def test_a_backbone_costs_the_sum_of_its_convolutions(merged):
    """Summed over the output shapes of a real run, where the large kernels may run by another algorithm."""
    arch = dict(large_kernel_sizes=[31, 13], layers=[1, 2], channels=[8, 16], small_kernel=5, dw_ratio=1.5)
    backbone = RepLKNet(arch, out_indices=(0, 1), merged=merged).eval()
    total = 0

    def add(conv, _, output):
        nonlocal total
        total += output.numel() * math.prod(conv.kernel_size) * conv.in_channels // conv.groups

    hooks = [m.register_forward_hook(add) for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        backbone(torch.zeros(1, 3, 50, 37))
    for hook in hooks:
        hook.remove()
    assert count(backbone, (50, 37)).macs == total > 0


def test_counting_leaves_the_model_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count(model, (16, 16))
    assert model.training and model[1].training
    for name, value in model.state_dict().items():
        assert value.device.type == 'cpu' and torch.equal(value, before[name])


def test_proposals_cost_what_their_heads_say(repo, monkeypatch):
    cfg = Config.fromfile(str(repo / 'configs/mask_rcnn_resnet50_coco.py'))
    model = build_on_meta(cfg)
    whole = count(model, (64, 64)).macs
    monkeypatch.setattr(complexity, 'BOX_PROPOSALS', 0)
    no_boxes = count(model, (64, 64)).macs
    monkeypatch.setattr(complexity, 'MASK_PROPOSALS', 0)
    neither = count(model, (64, 64)).macs
    assert whole - no_boxes == 1000 * (256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 4 * 80))
    assert no_boxes - neither == 100 * (14 * 14 * (4 * 256 * 256 * 9 + 256 * 256 * 4) + 28 * 28 * 256 * 80)


def test_the_auxiliary_head_is_left_out(repo):
    cfg = Config.fromfile(str(repo / 'configs/upernet_replknet31b_ade20k.py'))
    with_head = count(build_on_meta(cfg), (64, 64))
    cfg.model.auxiliary_head = None
    assert with_head == count(build_on_meta(cfg), (64, 64))


def test_operators_of_unknown_cost_are_named():

    class Spectral(nn.Module):

        def forward(self, x):
            return torch.fft.fft2(x)

    with pytest.raises(NotImplementedError, match='fft'):
        count(Spectral(), (16, 16))


class Does(nn.Module):
    """A function of the image, and of tensors of ones of some shapes."""

    def __init__(self, function, *shapes):
        super().__init__()
        self.function = function
        self.tensors = nn.ParameterList(nn.Parameter(torch.ones(shape)) for shape in shapes)

    def forward(self, x):
        return self.function(x, *self.tensors)


# On an image of (1, 3, 5, 7).
@pytest.mark.parametrize('function, shapes, macs', [
    (lambda x, v: x[0, 0] @ v, [(7, )], 35),  # mv
    (lambda x, b, v: torch.addmv(b, x[0, 0], v), [(5, ), (7, )], 35),
    (lambda x, v: torch.dot(x[0, 0, 0], v), [(7, )], 7),
    (lambda x, v: torch.vdot(x[0, 0, 0], v), [(7, )], 7),
    (lambda x, v: torch.inner(x, v), [(7, )], 105),
    (lambda x, m, v: torch.addr(m, x[0, 0, 0], v), [(7, 4), (4, )], 28),
    (lambda x, v: torch.outer(x[0, 0, 0], v), [(4, )], 0),  # a product of each pair: nothing is added
    (lambda x, m, b: torch.addbmm(m, x[0], b), [(5, 4), (3, 7, 4)], 3 * 5 * 7 * 4),
    (lambda x, m, b: torch.baddbmm(m, x[0], b), [(3, 5, 4), (3, 7, 4)], 3 * 5 * 7 * 4),
    (lambda x, b, m: torch.addmm(b, x[0, 0], m), [(4, ), (7, 4)], 5 * 7 * 4),
    (lambda x, m, n: torch.chain_matmul(x[0, 0], m, n), [(7, 2), (2, 9)], 5 * 7 * 2 + 5 * 2 * 9),
    (lambda x, m, n: torch.linalg.multi_dot([x[0, 0], m, n]), [(7, 2), (2, 9)], 5 * 7 * 2 + 5 * 2 * 9),
    (lambda x, m: torch.einsum('nchw,dc->ndhw', x, m), [(4, 3)], 4 * 3 * 35),
    (lambda x, m: torch.einsum('nchw,kw->nchk', x, m), [(4, 7)], 3 * 5 * 7 * 4),
    (lambda x, m: torch.tensordot(x, m, dims=2), [(5, 7, 4)], 3 * 35 * 4),
    (lambda x, m: torch.nn.functional.bilinear(x[0], x[0], m), [(4, 7, 7)], 15 * (4 * 49 + 4 * 7)),
    (lambda x: torch.nn.functional.grid_sample(x, x.new_zeros(1, 4, 4, 2), align_corners=False), [], 0),
    (lambda x, q: torch.nn.functional.scaled_dot_product_attention(q, q, q), [(1, 2, 6, 8)], 2 * 2 * 6 * 6 * 8),
])
def test_products_cost_what_their_formula_says(function, shapes, macs):
    assert count(Does(function, *shapes), (5, 7)).macs == macs


FREE = [
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.ELU(), nn.CELU(), nn.SELU(), nn.GELU(), nn.GELU('tanh'), nn.Hardswish(),
    nn.Hardsigmoid(), nn.Hardtanh(), nn.Mish(), nn.Softplus(), nn.Softshrink(), nn.SiLU(), nn.Sigmoid(), nn.Tanh(),
    nn.LogSigmoid(), nn.PReLU(4), nn.GLU(1), nn.Softmax(1), nn.LogSoftmax(1), nn.Softmax2d(), nn.RReLU(), nn.ReLU(True),
    nn.SiLU(True), nn.Hardswish(True), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(8), nn.InstanceNorm2d(4),
    nn.RMSNorm(8), nn.LocalResponseNorm(2), nn.Dropout(), nn.MaxPool2d(2), nn.AvgPool2d(3, 1), nn.LPPool2d(2, 2),
    nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, 5)), nn.AdaptiveMaxPool2d(2),
    nn.Upsample((9, 9), mode='bilinear'), nn.Upsample(scale_factor=2, mode='bicubic'), nn.Upsample(scale_factor=2),
    nn.PixelShuffle(2), nn.PixelUnshuffle(2),
    nn.ChannelShuffle(2), nn.Unfold(3), nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1),
    nn.CircularPad2d(1), nn.Flatten(), nn.Identity()]


@pytest.mark.parametrize('layer', FREE, ids=str)
def test_what_the_conventions_leave_out_costs_nothing(layer):
    assert count(layer, (8, 8), 4).macs == 0


@pytest.mark.parametrize('function', [
    lambda x: torch.cat([x, x.flip(1)]).roll(2, 3).transpose(1, 2)[:, 1:3].unsqueeze_(0).squeeze_(0).contiguous(),
    lambda x: x[..., torch.arange(3, device=x.device)] + x.new_ones(3) * torch.linspace(0, 1, 3, device=x.device),
    lambda x: x.masked_fill(x > 0, 1).cumsum(3).sort(3).values.topk(2, 3).indices / x.std() - x.var(1, True).mean(),
    lambda x: x.clone().index_fill_(1, x.new_zeros(1, dtype=torch.long), 0).scatter_(
        1, x.new_zeros(1, 1, 5, 7, dtype=torch.long), 1),
    lambda x: torch.where(x > 0, x, x.tril()).repeat(2, 1, 1, 1).gather(3, x.new_zeros(2, 3, 5, 1, dtype=torch.long)),
    lambda x: torch.nn.functional.normalize(x, dim=1).norm() + x.logsumexp(1).amax() + x.argmax(1) + x.median(),
    lambda x: torch.nn.functional.embedding(x[0, 0].long(), x[0, 0]).permute(2, 0, 1).expand(2, 7, 5, 7)[0],
])
def test_moving_and_reducing_costs_nothing(function):
    assert count(Does(function), (5, 7)).macs == 0


def test_a_bilinear_layer_costs_its_two_products():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.bilinear = nn.Bilinear(7, 5, 4)

        def forward(self, x):
            return self.bilinear(x, x[..., :5])

    assert count(Layer(), (6, 7)).macs == 3 * 6 * (4 * 7 * 5 + 4 * 7)


@pytest.mark.parametrize('function, name', [
    (lambda x: torch.cdist(x[0], x[0]), 'cdist'),
    (lambda x: torch.cdist(x[0].repeat(1, 9, 1), x[0].repeat(1, 9, 1)), 'cdist|euclidean'),
    (lambda x: torch.nn.functional.pdist(x[0, 0]), 'pdist'),
    (lambda x: torch.linalg.inv(x[0, :, :3, :3]), 'linalg'),
    (lambda x: torch.linalg.svd(x).U, 'svd'),
    (lambda x: torch.linalg.solve(x[0, 0, :3, :3], x[0, 0, :3]), 'solve'),
    (lambda x: torch.matrix_exp(x[0, :, :3, :3]), 'matrix_exp'),
    (lambda x: torch.linalg.cross(x[..., :3], x[..., :3]), 'cross'),
    (lambda x: torch.fft.fft(torch.complex(x, x)), 'fft'),
])
def test_what_has_no_formula_is_refused_by_name(function, name):
    with pytest.raises(NotImplementedError, match=f'multiply-adds of .*({name})'):
        count(Does(function), (5, 7))


def at(tree, path):
    """The node of a module by its dotted name."""
    for name in path.split('.'):
        tree, = (child for child in tree.children if child.name == name)
    return tree


def nodes(tree):
    yield tree
    for child in tree.children:
        yield from nodes(child)


ARCH = dict(large_kernel_sizes=[7, 5], layers=[1, 1], channels=[8, 16], small_kernel=3)


def test_modules_cost_what_their_formula_says():
    """At 64 x 32, where the maps of the first stage are 16 x 8 and of the second 8 x 4."""
    trees = [breakdown(RepLKNet(ARCH, out_indices=(0, 1), merged=merged), (32, 64)) for merged in (False, True)]
    training, merged = trees
    for stage, (kernel, width, pixels) in enumerate([(7, 8, 16 * 8), (5, 16, 8 * 4)]):
        block, ffn = f'stages.{stage}.blocks.0', f'stages.{stage}.blocks.1'
        for tree in trees:
            assert at(tree, f'{block}.pw1').macs == at(tree, f'{block}.pw2').macs == pixels * width**2
            assert at(tree, ffn).macs == 2 * pixels * 4 * width**2
        assert at(training, f'{block}.large_kernel').macs == pixels * width * (kernel**2 + 3**2)
        assert at(merged, f'{block}.large_kernel').macs == pixels * width * kernel**2
        norms = 2 * 2 * width
        assert at(training, f'{block}.large_kernel').parameters == width * (kernel**2 + 3**2) + norms
        assert at(merged, f'{block}.large_kernel').parameters == width * kernel**2 + width
    assert training.macs - merged.macs == 9 * (8 * 16 * 8 + 16 * 8 * 4)


@pytest.mark.parametrize('name, size', [('upernet_replknet31b_ade20k', (64, 128)), ('upernet_swin-b_ade20k', (64, 64)),
                                        ('mask_rcnn_resnet50_coco', (64, 64))])
def test_the_parts_add_up(repo, name, size):
    model = build_on_meta(Config.fromfile(str(repo / f'configs/{name}.py')), merged=False)
    tree, result = breakdown(model, size), count(model, size)
    assert (tree.parameters, tree.macs) == (result.parameters, result.macs)
    for node in nodes(tree):
        assert sum(child.macs for child in node.children) <= node.macs
        assert sum(child.parameters for child in node.children) <= node.parameters
    assert sum(child.macs for child in tree.children) == tree.macs > 0
    assert at(tree, 'backbone').parameters == sum(p.numel() for p in model.backbone.parameters())
    assert 'auxiliary_head' not in [child.name for child in tree.children]
    assert list(tree.idle()) == []


class Odd(nn.Module):
    """A child called by ``forward``, one called twice, a product of its own, and a head that nobody runs."""

    def __init__(self):
        super().__init__()
        self.direct, self.twice, self.head = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 9)
        self.again = self.twice

    def forward(self, x):
        x = self.again(self.twice(self.direct.forward(x.mean(3))))
        return x @ x.transpose(1, 2)


def test_every_product_belongs_to_the_innermost_module():
    tree = breakdown(Odd(), (5, 4))  # a (1, 3, 5) map after the mean
    assert {child.name: child.macs for child in tree.children} == {'direct': 3 * 35, 'twice': 2 * 3 * 49, 'head': 0}
    assert tree.macs == 3 * 35 + 2 * 3 * 49 + 3 * 3 * 7
    assert tree.parameters == 42 + 56 + 72  # the shared layer once
    assert list(tree.idle()) == ['head']


def test_transforms_and_deformable_convolutions_cost_by_formula():
    class Filter(nn.Module):
        def forward(self, x):
            return torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[2:])

    assert count(Filter(), (12, 20)).macs == 2 * 3 * 240 * 8  # 2^8 is the first power of two past 240
    ops = pytest.importorskip('mmcv.ops')
    for layer, offsets in ((ops.DeformConv2dPack(3, 8, 3, padding=1, bias=False), 18),
                           (ops.ModulatedDeformConv2dPack(3, 8, 3, padding=1), 27)):
        assert count(layer, (10, 20)).macs == 200 * 27 * (8 + offsets)

    from torchvision.ops import deform_conv2d

    class Deformable(nn.Conv2d):
        def forward(self, x):
            return deform_conv2d(x, x.new_zeros(1, 18, 10, 20), self.weight, padding=1)

    assert count(Deformable(3, 8, 3), (10, 20)).macs == 200 * 27 * 8


def test_a_module_that_does_not_run_on_shapes_is_named():
    class Reads(nn.Module):
        def forward(self, x):
            return x * x.max().item()

    with pytest.raises(NotImplementedError, match=r"'1.0' \(Reads\) does not run on the shape of a 30x20 image"):
        count(nn.Sequential(nn.ReLU(), nn.Sequential(Reads())), (20, 30))


def test_two_forms_side_by_side():
    trees = [breakdown(RepLKNet(ARCH, out_indices=(0, 1), merged=merged), (32, 32)) for merged in (False, True)]
    lines = list(compare_forms(*trees, depth=6))
    assert [line.name for line in compare_forms(*trees, depth=1)] == ['', 'stem', 'stages', 'transitions']
    names = [line.name for line in lines if line.level == 6 and (line.merged is None or line.training is None)]
    assert names[:3] == ['lkb_origin', 'small_conv', 'lkb_reparam']
    assert {(line.training is None, line.merged is None) for line in lines if line.name == 'lkb_reparam'} == {
        (True, False)}


def test_shapes_are_width_by_height():
    assert parse_size('2048x512') == (512, 2048)
    for text in ('2048', '2048x', 'x512', '2048,512', '0x512', '2048x512x3', '-1x5', '2048X512', ''):
        with pytest.raises(ValueError, match='WIDTHxHEIGHT'):
            parse_size(text)


@pytest.mark.parametrize('cfg', [{}, dict(model=dict(type='A')), dict(model=dict(backbone=None)),
                                 dict(model=dict(backbone=dict(depth=50)))])
def test_a_config_without_a_backbone_is_refused(cfg):
    with pytest.raises(ValueError, match='has no backbone'):
        check_backbone(Config(cfg))


@pytest.fixture
def run(repo, monkeypatch, capsys):
    """The tool, run with some arguments; what it wrote to stdout, and to stderr."""
    spec = importlib.util.spec_from_file_location('complexity_tool', repo / 'tools' / 'complexity.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.chdir(repo)

    def run(*arguments, expect=0):
        monkeypatch.setattr(sys, 'argv', ['complexity.py', *map(str, arguments)])
        code = 0
        try:
            tool.main()
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        assert code == expect, captured.err
        return captured

    return run


def test_the_tool_shows_and_writes_both_forms(run, tmp_path):
    out = run('configs/upernet_replknet31b_ade20k.py', '--shape', '2048x512', '--depth', 1, '--out',
              tmp_path / 'new' / 'counts.json').out
    assert '2048 wide and 512 high' in out and 'Published: 112M / 1170G' in out
    whole, = (line.split() for line in out.splitlines() if 'whole model' in line)
    assert whole[2:6] == ['112.153', '111.816', '1170.945', '1169.320']
    assert 'stages' not in out
    report = json.loads((tmp_path / 'new' / 'counts.json').read_text())
    assert report['shape'] == dict(width=2048, height=512) and 'multiply-add' in report['conventions']
    assert report['merged']['macs'] < report['training']['macs']
    backbone, = (child for child in report['merged']['children'] if child['name'] == 'backbone')
    assert backbone['kind'] == 'RepLKNet' and backbone['children'][1]['name'] == 'stages'


def test_the_tool_says_where_nothing_merges(run):
    out = run('configs/upernet_swin-t_ade20k.py', '--shape', '64x64').out
    assert 'no parallel branches' in out and 'Published' not in out  # known at 2048x512 alone


@pytest.mark.parametrize('arguments, problem', [
    (['configs/upernet_swin-t_ade20k.py', '--shape', '512'], "WIDTHxHEIGHT in pixels, as 2048x512, got '512'"),
    (['configs/no.py', '--shape', '64x64'], 'no config at configs/no.py'),
    (['configs/_base_/runtime_seg.py', '--shape', '64x64'], 'the config has no backbone'),
    (['configs/upernet_swin-t_ade20k.py', '--shape', '64x64', '--depth', '-1'], '--depth must be at least 0, got -1'),
    (['configs/upernet_swin-t_ade20k.py', '--shape', '64x64', '--cfg-options', 'model.backbone.type=Nothing'],
     'cannot be built: .*Nothing'),
    (['configs/mask_rcnn_resnet50_coco.py', '--shape', '64x64', '--cfg-options', 'model.neck.in_channels=[1,2,3,4]'],
     "cannot be counted: 'neck.*does not run"),
])
def test_the_tool_refuses_in_one_message(run, arguments, problem):
    message = run(*arguments, expect=2).err
    assert re.search(problem, message) and message.count('error: ') == 1
