"""mmcv's compiled operators read a tensor of any strides and dtype correctly once mmlk is imported."""
import subprocess
import sys

import pytest
import torch
import torch._dynamo
import torchvision
from mmcv import _ext, ops

import mmlk  # noqa: F401
from mmlk._mmcv_ops import guarded

ROIS = torch.tensor([[0, 1.0, 2.0, 15.0, 17.0], [1, 3.0, 3.0, 20.0, 12.0], [1, 0.0, 0.0, 23.0, 19.0]])
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


def offsets(x, groups):
    return torch.linspace(-1, 1, x.shape[0] * groups * 18 * 22).view(x.shape[0], groups, 18, 22)


OPERATORS = {
    'roi_align': lambda x: ops.roi_align(x, ROIS, (7, 7), 0.5, 0, 'avg', True),
    'roi_align, two samples': lambda x: ops.roi_align(x, ROIS, (7, 7), 1.0, 2, 'avg', False),
    'roi_align, maximum': lambda x: ops.roi_align(x, ROIS, (5, 3), 1.0, 0, 'max', True),
    'roi_align_rotated': lambda x: ops.roi_align_rotated(x, ROTATED, (7, 7), 1.0, 2, True, False),
    'deform_conv2d': lambda x: ops.deform_conv2d(x, offsets(x, 18), torch.linspace(-1, 1, 576).view(8, 8, 3, 3)),
    'modulated_deform_conv2d': lambda x: ops.modulated_deform_conv2d(
        x, offsets(x, 18), offsets(x, 9).abs(), torch.linspace(-1, 1, 576).view(8, 8, 3, 3), None, 1, 0, 1, 1, 1),
    'psa_mask': lambda x: ops.PSAMask('collect', (2, 4))(x),
}


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
def test_strides_do_not_change_the_result(operator, layout):
    x = LAYOUTS[layout](torch.randn(2, 8, 20, 24))
    assert not x.is_contiguous()
    for ours, expected in zip(run(operator, x), run(operator, x.contiguous()), strict=True):
        assert torch.equal(ours, expected) and expected.abs().max() > 0


@pytest.mark.parametrize('layout', LAYOUTS)
def test_multi_scale_deformable_attention(layout):
    """Against mmcv's own form in PyTorch. Values are (N, pixels, heads, channels)."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
    value = LAYOUTS[layout](torch.randn(2, 80, 4, 8))
    shapes, start = torch.tensor([[8, 8], [4, 4]]), torch.tensor([0, 64])
    places, weights = torch.rand(2, 5, 4, 2, 3, 2), torch.rand(2, 5, 4, 2, 3)
    expected = multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
    assert torch.isfinite(expected).all()
    try:
        out = MultiScaleDeformableAttnFunction.apply(value, shapes, start, places, weights, 64)
    except RuntimeError as error:
        assert 'not found' in str(error) or 'Not implemented' in str(error)  # compiled for a GPU alone: loud
    else:
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_roi_align_is_that_of_torchvision(layout):
    x = LAYOUTS[layout](torch.randn(2, 8, 20, 24))
    for ratio, aligned, scale in ((0, True, 1.0), (2, False, 0.5)):
        out = ops.roi_align(x, ROIS, (7, 7), scale, ratio, 'avg', aligned)
        torch.testing.assert_close(out, torchvision.ops.roi_align(x, ROIS, (7, 7), scale, ratio, aligned))


@pytest.mark.parametrize('layout', ['transposed', 'strided'])
def test_suppression_is_that_of_torchvision(layout):
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
def test_half_precision_on_a_cpu_is_float32_rounded(dtype):
    x = torch.randn(2, 8, 20, 24).to(dtype).requires_grad_()
    out = ops.roi_align(x, ROIS.to(dtype), (7, 7), 1.0, 0, 'avg', True)
    leaf = x.detach().float().requires_grad_()
    expected = ops.roi_align(leaf, ROIS, (7, 7), 1.0, 0, 'avg', True)
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))
    out.float().square().sum().backward()
    expected.square().sum().backward()
    assert x.grad.dtype == dtype and (x.grad.float() - leaf.grad).abs().max() < 0.02 * leaf.grad.abs().max()


def test_a_compiled_model_calls_them_as_well():
    """torch.compile cannot trace mmcv's functions, guarded or not, and leaves them to run as they are."""
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


def test_every_function_of_the_extension_is_guarded():
    functions = {name: value for name, value in vars(_ext).items() if callable(value) and not name.startswith('_')}
    assert len(functions) > 50
    assert [name for name, function in functions.items() if not hasattr(function, '__wrapped__')] == []


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
