"""mmcv's operators, the compiled ones and torchvision's, read tensors of any strides and dtype."""
import base64
import hashlib
import importlib.machinery
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
import torch
import torch._dynamo
import torchvision
from mmcv import _ext, ops

import mmlk  # noqa: F401
from mmlk import _mmcv_ext, _mmcv_file
from mmlk._mmcv_ops import guarded

COMPILED = not _ext.__file__.endswith('.py')
needs_compiled = pytest.mark.skipif(
    not COMPILED, reason="mmcv's operators are not compiled here: bash tools/install.sh --compiled-ops")


def use_ours(monkeypatch):
    """torchvision's kernels behind mmcv.ops, whatever is installed."""
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and getattr(module, 'ext_module', None) is _ext:
            monkeypatch.setattr(module, 'ext_module', _mmcv_ext)


@pytest.fixture(params=[pytest.param('compiled', marks=needs_compiled), 'torchvision'])
def extension(request, monkeypatch):
    if request.param == 'torchvision':
        use_ours(monkeypatch)
    return request.param


ROIS = torch.tensor([[0, 1.0, 2.0, 15.0, 17.0], [1, 3.0, 3.0, 20.0, 12.0], [1, 0.0, 0.0, 23.0, 19.0],
                     [0, -7.3, -6.2, 33.1, 29.4]])  # the last reaches out of the map
ROTATED = torch.tensor([[0, 8.0, 9.0, 10.0, 7.0, 0.3], [1, 10.0, 8.0, 6.0, 12.0, 1.0]])


def expanded(x):
    """The same map in every channel and image, with strides of 0."""
    return x[:1, :1].expand(x.shape)


LAYOUTS = {
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'transposed': lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    'sliced': lambda x: torch.cat([x, x], dim=1)[:, ::2],
    'expanded': expanded,
}


def offsets(x, channels, height=18, width=22):
    return torch.linspace(-1, 1, x.shape[0] * channels * height * width).view(x.shape[0], channels, height, width)


OPERATORS = {
    'roi_align': lambda x: ops.roi_align(x, ROIS, (7, 7), 0.5, 0, 'avg', True),
    'roi_align, two samples': lambda x: ops.roi_align(x, ROIS, (7, 7), 1.0, 2, 'avg', False),
    'roi_align, maximum': lambda x: ops.roi_align(x, ROIS, (5, 3), 1.0, 0, 'max', True),
    'roi_align_rotated': lambda x: ops.roi_align_rotated(x, ROTATED, (7, 7), 1.0, 2, True, False),
    'deform_conv2d': lambda x: ops.deform_conv2d(x, offsets(x, 18), torch.linspace(-1, 1, 576).view(8, 8, 3, 3)),
    'modulated_deform_conv2d': lambda x: ops.modulated_deform_conv2d(
        x, offsets(x, 18), offsets(x, 9).abs(), torch.linspace(-1, 1, 576).view(8, 8, 3, 3), None, 1, 0, 1, 1, 1),
    'modulated_deform_conv2d, groups': lambda x: ops.modulated_deform_conv2d(
        x, offsets(x, 36, 10, 12), offsets(x, 18, 10, 12).abs(), torch.linspace(-1, 1, 288).view(8, 4, 3, 3),
        torch.linspace(-1, 1, 8), (2, 2), 1, 1, 2, 2),
    'deform_conv2d, wide': lambda x: ops.deform_conv2d(
        x, offsets(x, 60, 9, 22), torch.linspace(-1, 1, 8 * 4 * 15).view(8, 4, 5, 3), (2, 1), (1, 0), (1, 1), 2, 2),
    'psa_mask': lambda x: ops.PSAMask('collect', (2, 4))(x),
}


ONLY_COMPILED = ('roi_align_rotated', 'psa_mask')


def run(operator, x):
    """The result, and the gradient of x for a gradient of other strides."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    if leaf.stride() != x.stride():  # expanded maps: a clone has strides of its own
        leaf = x.detach().requires_grad_()
    out = OPERATORS[operator](leaf)
    cotangent = torch.linspace(-1, 1, out.numel()).view(out.shape).contiguous(memory_format=torch.channels_last)
    return out, torch.autograd.grad(out, leaf, cotangent)[0]


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('operator', OPERATORS)
def test_strides_do_not_change_the_result(operator, layout, extension):
    if extension == 'torchvision' and operator in ONLY_COMPILED:
        with pytest.raises(NotImplementedError, match='bash tools/install.sh --compiled-ops'):
            run(operator, torch.randn(2, 8, 20, 24))
        return
    x = LAYOUTS[layout](torch.randn(2, 8, 20, 24))
    assert not x.is_contiguous()
    for ours, expected in zip(run(operator, x), run(operator, x.contiguous()), strict=True):
        assert torch.equal(ours, expected) and expected.abs().max() > 0


@needs_compiled
@pytest.mark.parametrize('layout', ['contiguous', *LAYOUTS])
@pytest.mark.parametrize('operator', [operator for operator in OPERATORS if operator not in ONLY_COMPILED])
def test_values_and_gradients_are_those_of_the_compiled_operators(operator, layout, monkeypatch):
    x = LAYOUTS.get(layout, torch.clone)(torch.randn(2, 8, 20, 24))
    expected = run(operator, x)
    use_ours(monkeypatch)
    for ours, theirs in zip(run(operator, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def leaves(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


@needs_compiled
@pytest.mark.parametrize('modulated', [False, True])
def test_every_gradient_of_deformable_convolution_is_that_of_the_compiled_one(modulated, monkeypatch):
    def gradients():
        torch.manual_seed(0)
        x, offset, mask, weight, bias = leaves(
            torch.randn(4, 6, 12, 10), torch.randn(4, 36, 6, 10), torch.rand(4, 18, 6, 10),
            torch.randn(8, 3, 3, 3), torch.randn(8))
        # stride (2, 1), padding 1, dilation 1, two groups of both kinds
        if modulated:
            inputs = [x, offset, mask, weight, bias]
            out = ops.modulated_deform_conv2d(*inputs, (2, 1), (1, 1), (1, 1), 2, 2)
        else:
            inputs = [x, offset, weight]
            out = ops.deform_conv2d(*inputs, (2, 1), (1, 1), (1, 1), 2, 2)
        cotangent = torch.randn_like(out).transpose(2, 3).contiguous().transpose(2, 3)
        return [out, *torch.autograd.grad(out, inputs, cotangent)]

    expected = gradients()
    use_ours(monkeypatch)
    for ours, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert theirs.abs().max() > 0


def random_boxes(number, whole):
    corners = torch.rand(number, 2) * 50
    boxes = torch.cat([corners, corners + 2 + torch.rand(number, 2) * 25], dim=1)
    return boxes.round() if whole else boxes


@needs_compiled
@pytest.mark.parametrize('whole', [False, True])  # whole numbers give overlaps equal to the threshold
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.6, 0.7])
def test_suppression_is_that_of_the_compiled_operators(whole, offset, threshold, monkeypatch):
    boxes, scores = random_boxes(300, whole), torch.rand(300)

    def results():
        yield from ops.nms(boxes, scores, threshold, offset)
        for method in ('naive', 'linear', 'gaussian'):
            yield from ops.soft_nms(boxes, scores, threshold, sigma=0.4, min_score=0.05, method=method, offset=offset)
        yield from ops.nms_match(torch.cat([boxes, scores[:, None]], dim=1), threshold)
        for aligned in (False, True):
            for mode in ('iou', 'iof'):
                yield ops.bbox_overlaps(boxes, boxes.flip(0), mode, aligned, offset)

    expected = list(results())
    assert 10 < len(expected[1]) < 290
    use_ours(monkeypatch)
    for ours, theirs in zip(results(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_box_whose_overlap_equals_the_threshold_is_kept(extension):
    boxes = torch.tensor([[0., 0., 5., 1.], [0., 0., 3., 1.]])  # overlap 3 / 5
    assert ops.nms(boxes, torch.tensor([.9, .8]), 0.6)[1].tolist() == [0, 1]
    assert ops.nms(boxes, torch.tensor([.9, .8]), 0.59)[1].tolist() == [0]


def test_nothing_is_suppressed_where_there_are_no_boxes(extension):
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    assert ops.nms(boxes, scores, 0.5)[1].shape == (0, )
    assert ops.soft_nms(boxes, scores)[0].shape == (0, 5)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_roi_pool_is_that_of_torchvision(layout, monkeypatch):
    use_ours(monkeypatch)
    x = LAYOUTS[layout](torch.randn(2, 8, 20, 24))
    results = []
    for pool in (ops.roi_pool, torchvision.ops.roi_pool):
        leaf = x.detach().requires_grad_()
        out = pool(leaf, ROIS, (5, 3), 0.5)
        results.append([out, *torch.autograd.grad(out, leaf, torch.linspace(-1, 1, out.numel()).view(out.shape))])
    torch.testing.assert_close(results[0], results[1])
    assert all(result.abs().max() > 0 for result in results[0])


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.5, 0.7)])
@pytest.mark.parametrize('weighted', [False, True])
def test_focal_losses_and_their_gradients(gamma, alpha, weighted, monkeypatch):
    """Against the formulas; target 5 of five classes is background."""
    use_ours(monkeypatch)
    logits, weight = 3 * torch.randn(40, 5), torch.rand(5) if weighted else None
    targets = torch.arange(40) % 6
    rows = torch.ones(40) if weight is None else torch.cat([weight, torch.ones(1)])[targets]
    hot = torch.nn.functional.one_hot(targets, 6)[:, :5].float()

    def sigmoid(x):
        p = x.sigmoid()
        loss = -alpha * hot * (1 - p)**gamma * p.log() - (1 - alpha) * (1 - hot) * p**gamma * (1 - p).log()
        return loss * rows[:, None]

    def softmax(x):
        p = (x.softmax(1) * hot).sum(1) + (targets == 5)
        return -alpha * (1 - p)**gamma * p.log() * rows

    for reference, loss in ((sigmoid, ops.sigmoid_focal_loss), (softmax, ops.softmax_focal_loss)):
        [x], [y] = leaves(logits.t().contiguous().t()), leaves(logits)
        for reduction, reduce in (('none', lambda z: z), ('sum', torch.sum), ('mean', lambda z: z.sum() / 40)):
            if reduction == 'none' and reference is softmax:
                continue  # mmcv multiplies a (N, classes) gradient by the (N, ) one of the loss
            ours, expected = loss(x, targets, gamma, alpha, weight, reduction), reduce(reference(y))
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
            if reference is sigmoid or gamma >= 1:
                foreground = targets < 5  # autograd has 0 * infinity in a softmax's background
                got, want = torch.autograd.grad(ours.sum(), x)[0], torch.autograd.grad(expected.sum(), y)[0]
                torch.testing.assert_close(got[foreground], want[foreground], rtol=1e-4, atol=1e-5)
                assert torch.isfinite(got).all()


def test_the_gradient_of_a_certain_class_is_finite(monkeypatch):
    use_ours(monkeypatch)
    [x] = leaves(torch.tensor([[200., 0.], [0., 200.]]))
    for loss in (ops.sigmoid_focal_loss, ops.softmax_focal_loss):
        loss(x, torch.tensor([0, 0]), 0.5, 0.25, None, 'sum').backward()
    assert torch.isfinite(x.grad).all()


def test_focal_losses_in_half_precision_are_those_in_single(monkeypatch):
    """The kernels themselves, which get half precision on a GPU alone."""
    x, target, none = 8 * torch.randn(30, 4), torch.arange(30) % 5, torch.zeros(0)
    for name, shape in (('sigmoid', (30, 4)), ('softmax', (30, ))):
        values = x if name == 'sigmoid' else x.softmax(1)
        for direction, out_shape in (('forward', shape), ('backward', (30, 4))):
            kernel = getattr(_mmcv_ext, f'{name}_focal_loss_{direction}').__wrapped__
            results = []
            for dtype in (torch.float16, torch.float32):
                out = torch.zeros(out_shape, dtype=dtype)
                buffer = [torch.zeros(30, dtype=dtype)] if (name, direction) == ('softmax', 'backward') else []
                kernel(values.half().to(dtype), target, none.to(dtype), *buffer, out, 0.5, 0.25)
                results.append(out.float())
            torch.testing.assert_close(*results, rtol=2e-3, atol=1e-3)


def test_gradients_in_deterministic_mode():
    """torchvision has none for CUDA: the CPU's are taken, whose values are tested above."""
    def kernel(first, factor):
        assert isinstance(first, Cpu)
        return first, first

    class Cpu(torch.Tensor):
        def to(self, device):
            return f'to {device}'

    class Gpu(torch.Tensor):
        device = torch.device('cuda')

        def cpu(self):
            return torch.zeros(1).as_subclass(Cpu)

    assert _mmcv_ext._gradients(lambda x, factor: type(x), torch.zeros(1).as_subclass(Gpu), 2) is Gpu
    torch.use_deterministic_algorithms(True)
    try:
        assert _mmcv_ext._gradients(kernel, torch.zeros(1).as_subclass(Gpu), 2) == ['to cuda', 'to cuda']
        run('modulated_deform_conv2d', torch.randn(2, 8, 20, 24))
        run('roi_align', torch.randn(2, 8, 20, 24))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_multi_scale_deformable_attention(layout, extension):
    """Against mmcv's own form in PyTorch. Values are (N, pixels, heads, channels)."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
    value = LAYOUTS[layout](torch.randn(2, 80, 4, 8))
    shapes, start = torch.tensor([[8, 8], [4, 4]]), torch.tensor([0, 64])
    inputs = [value.detach().requires_grad_(), *leaves(torch.rand(2, 5, 4, 2, 3, 2), torch.rand(2, 5, 4, 2, 3))]
    expected = multi_scale_deformable_attn_pytorch(inputs[0], shapes, *inputs[1:])
    assert torch.isfinite(expected).all()
    try:
        out = MultiScaleDeformableAttnFunction.apply(inputs[0], shapes, start, *inputs[1:], 64)
    except RuntimeError as error:
        assert extension == 'compiled'
        assert 'not found' in str(error) or 'Not implemented' in str(error)  # compiled for a GPU alone: loud
    else:
        torch.testing.assert_close(out, expected)
        cotangent = torch.randn_like(out)
        for ours, theirs in zip(torch.autograd.grad(out, inputs, cotangent),
                                torch.autograd.grad(expected, inputs, cotangent), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_roi_align_is_that_of_torchvision(layout, extension):
    x = LAYOUTS[layout](torch.randn(2, 8, 20, 24))
    for ratio, aligned, scale in ((0, True, 1.0), (2, False, 0.5)):
        out = ops.roi_align(x, ROIS, (7, 7), scale, ratio, 'avg', aligned)
        torch.testing.assert_close(out, torchvision.ops.roi_align(x, ROIS, (7, 7), scale, ratio, aligned))


@pytest.mark.parametrize('layout', ['transposed', 'strided'])
def test_suppression_is_that_of_torchvision(layout, extension):
    corners = torch.rand(200, 2) * 50
    boxes, scores = torch.cat([corners, corners + 5 + torch.rand(200, 2) * 20], dim=1), torch.rand(200)
    kept = torchvision.ops.nms(boxes, scores, 0.4)
    assert 10 < len(kept) < 190
    if layout == 'transposed':
        boxes = boxes.t().contiguous().t()
    else:
        boxes, scores = torch.cat([boxes, boxes], dim=1)[:, :4], torch.stack([scores, scores], dim=1)[:, 0]
    assert not boxes.is_contiguous()
    assert torch.equal(ops.nms(boxes, scores, 0.4)[1], kept)
    soft, _ = ops.soft_nms(boxes, scores)
    assert torch.equal(soft, ops.soft_nms(boxes.contiguous(), scores.contiguous())[0])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_on_a_cpu_is_float32_rounded(dtype, extension):
    x = torch.randn(2, 8, 20, 24).to(dtype).requires_grad_()
    out = ops.roi_align(x, ROIS.to(dtype), (7, 7), 1.0, 0, 'avg', True)
    leaf = x.detach().float().requires_grad_()
    expected = ops.roi_align(leaf, ROIS.to(dtype).float(), (7, 7), 1.0, 0, 'avg', True)
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))
    out.float().square().sum().backward()
    expected.square().sum().backward()
    assert x.grad.dtype == dtype and (x.grad.float() - leaf.grad).abs().max() < 0.02 * leaf.grad.abs().max()


def test_a_compiled_model_calls_them_as_well(extension):
    """torch.compile cannot trace mmcv's own functions, guarded or not, and leaves them to run as they are."""
    def pooled(x):
        maps = x.relu().contiguous(memory_format=torch.channels_last)
        return ops.roi_align(maps, ROIS, (7, 7), 1.0, 0, 'avg', True).mul(2)

    torch._dynamo.reset()
    x = torch.randn(2, 8, 20, 24)
    results = []
    for function in (pooled, torch.compile(pooled, backend='aot_eager')):
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
    expected = 2 * torchvision.ops.roi_align(x.relu(), ROIS, (7, 7), aligned=True)
    torch.testing.assert_close(results[0][0], expected)
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize('extension', [pytest.param(_ext, marks=needs_compiled), _mmcv_ext],
                         ids=['compiled', 'torchvision'])
def test_every_function_of_the_extension_is_guarded(extension):
    names = getattr(extension, '__all__', None) or [name for name in vars(extension) if not name.startswith('_')]
    functions = {name: getattr(extension, name) for name in names}
    assert len(functions) > 20 and all(map(callable, functions.values()))
    assert [name for name, function in functions.items()
            if not hasattr(function, '__wrapped__') and not name.startswith('get_')] == []


def test_an_output_of_other_strides_is_filled_and_an_input_keeps_its_version():
    def double(x, out):
        assert x.is_contiguous() and out.is_contiguous()
        out.data.copy_(2 * x)
        return out.dtype

    x, out = torch.arange(12.0).view(3, 4).t(), torch.zeros(3, 4).t()
    x[0, 0] = torch.nan  # is not equal to itself
    version = x._version
    assert guarded(double)(x, out=out) == torch.float32
    torch.testing.assert_close(out, 2 * x, equal_nan=True)
    assert x._version == version
    small = torch.zeros(4, 3, dtype=torch.bfloat16)
    guarded(double)(x, out=small)
    torch.testing.assert_close(small.float(), 2 * x, equal_nan=True)
    with pytest.raises(RuntimeError, match='single memory location'):  # such a result would be lost
        guarded(double)(torch.ones(4, 3), out=torch.zeros(1, 3).expand(4, 3))
    assert guarded(lambda parts: [part.is_contiguous() for part in parts])([x, x.t()]) == [True, True]


@pytest.mark.parametrize('first, second', [('mmlk', 'mmcv.ops'), ('mmcv.ops', 'mmlk')])
def test_the_order_of_imports_does_not_matter(first, second):
    code = (f'import {first}, {second}, torch, torchvision; from mmcv.ops import roi_align; '
            'x = torch.randn(1, 8, 9, 9).contiguous(memory_format=torch.channels_last); '
            'rois = torch.tensor([[0, 1., 1., 7., 6.]]); '
            'expected = torchvision.ops.roi_align(x, rois, (3, 3), aligned=True); '
            'print((roi_align(x, rois, (3, 3)) - expected).abs().max())')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'tensor(0.)', done.stderr[-2000:]


@needs_compiled
def test_ours_have_the_names_and_arguments_of_the_compiled_operators():
    for name in _mmcv_ext.__all__:
        signature = getattr(_ext, name).__doc__.splitlines()[0]
        theirs = re.findall(r'(\w+): ', signature)
        function = getattr(_mmcv_ext, name)
        code = getattr(function, '__wrapped__', function).__code__
        assert list(code.co_varnames[:code.co_argcount]) == theirs, name


def test_a_missing_operator_says_what_to_do():
    assert not hasattr(_mmcv_ext, '__wrapped__') and not hasattr(_mmcv_ext, '_private')
    function = _mmcv_ext.nms_rotated
    assert function.__name__ == 'nms_rotated'
    with pytest.raises(NotImplementedError, match="'nms_rotated' is not available.*install.sh --compiled-ops"):
        function(1, 2, iou_threshold=0.5)


@pytest.fixture
def site(tmp_path):
    """A folder with the installed mmcv but for its extension, and the records of an installation."""
    source = Path(mmcv.__file__).parent
    shutil.copytree(source, tmp_path / 'mmcv', ignore=shutil.ignore_patterns('_ext*', 'csrc', '__pycache__'))
    [record] = list(source.parent.glob('*mmcv-*.dist-info'))
    shutil.copytree(record, tmp_path / record.name)
    return tmp_path


def fresh(code, *paths, **environment):
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, paths)), **environment})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()


def test_mmdet_runs_without_compiled_operators_where_nobody_imports_mmlk(site, repo):
    _mmcv_file.write(site / 'mmcv')
    code = """
import sys, torch, mmcv
assert mmcv.__file__.startswith(SITE) and 'mmlk' not in sys.modules
import mmdet.apis, mmdet.models
from mmcv.ops import CARAFE, RoIAlign, batched_nms
from mmcv.utils import collect_env
rois = torch.tensor([[0, 1., 1., 7., 6.]])
x = torch.randn(1, 8, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
RoIAlign(3)(x, rois).sum().backward()
print(x.grad.sum().item())
print(collect_env()['MMCV Compiler'])
try:
    CARAFE(3, 1, 2)(torch.randn(1, 4, 4, 4), torch.randn(1, 9, 8, 8))
except NotImplementedError as error:
    print(error)
""".replace('SITE', repr(str(site)))
    total, compiler, error = fresh(code, site, repo)[-3:]
    assert float(total) == pytest.approx(8 * 9)  # the weights of each of the 9 bins of 8 channels sum to 1
    assert compiler.startswith('none (torchvision') and "'carafe_forward' is not available" in error


def test_the_file_in_mmcv_belongs_to_mmcv_and_is_written_once(site):
    for _ in range(2):
        path = _mmcv_file.write(site / 'mmcv')
    assert path == site / 'mmcv' / '_ext.py'
    [distribution] = importlib.metadata.distributions(path=[str(site)])
    [file] = [file for file in distribution.files if str(file) == 'mmcv/_ext.py']
    assert Path(file.locate()) == path and file.size == len(path.read_bytes())
    assert file.hash.value == base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).decode().rstrip('=')
    assert sum(str(file) == 'mmcv/__init__.py' for file in distribution.files) == 1


def test_the_file_in_mmcv_gives_way_to_a_compiled_extension(site):
    _mmcv_file.write(site / 'mmcv')
    compiled = site / 'mmcv' / f'_ext{importlib.machinery.EXTENSION_SUFFIXES[0]}'

    def found():
        importlib.invalidate_caches()
        return Path(importlib.machinery.PathFinder.find_spec('mmcv._ext', [str(site / 'mmcv')]).origin)

    assert found().name == '_ext.py'
    compiled.touch()
    assert found() == compiled


def test_without_mmlk_the_file_in_mmcv_is_as_good_as_absent(site):
    _mmcv_file.write(site / 'mmcv')
    code = ('import sys; sys.modules["mmlk"] = None; import mmcv\n'
            'try: import mmcv._ext\n'
            'except ModuleNotFoundError as error: print(error.name); print(error)')
    name, message = fresh(code, site)
    assert name == 'mmcv._ext' and 'mmlk' in message


def test_there_is_one_error_where_mmcv_is_missing(monkeypatch):
    monkeypatch.setattr(_mmcv_file.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="No module named 'mmcv'"):
        _mmcv_file.write()
