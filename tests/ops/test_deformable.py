"""DCNv3 and DCNv4 against their definition in loops, against the official PyTorch form, and within its memory."""
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from mmlk.deploy import formats
from mmlk.ops import dcnv3, dcnv4, deformable
from tests.utils import image, relative_error

# Shape of the map (N, H, W, C), kernel, stride, padding, dilation, groups, scale. The official outputs for these are in
# tests/data/internimage.npz, which tests/backbones/test_internimage.py describes.
CASES = {
    'plain': ((2, 5, 7, 8), 3, 1, 1, 1, 2, 1.0),
    'scaled': ((1, 6, 5, 12), 3, 1, 1, 1, 3, 2.0),
    'strided': ((2, 9, 11, 4), 3, 2, 1, 1, 1, 1.5),
    'dilated': ((1, 9, 8, 6), 3, 1, 2, 2, 2, 1.0),
    'wide': ((1, 8, 9, 4), (3, 5), (2, 1), 2, (1, 2), 2, 0.5),
    'even': ((1, 6, 7, 4), (2, 4), 1, 1, 1, 1, 1.0),
}
# The official form pads H by the padding of W and the other way round, so this one has no official output.
PADDED = ((1, 5, 6, 4), 3, 1, (0, 2), 1, 2, 1.0)


def pair(value):
    return (value, value) if isinstance(value, int) else value


def inputs(shape, kernel, stride, padding, dilation, groups, scale):
    """Map, offsets of up to some pixels, so that samples lie outside too, and mask."""
    rows, columns = ((extent + 2 * p - d * (k - 1) - 1) // s + 1 for extent, k, s, p, d in zip(
        shape[1:3], *map(pair, (kernel, stride, padding, dilation))))
    taps = math.prod(pair(kernel))
    return (image(*shape), 2 * image(shape[0], rows, columns, groups * taps * 2, seed=1),
            image(shape[0], rows, columns, groups * taps, seed=2))


def pixel(x, n, i, j):
    return x[n, i, j] if 0 <= i < x.shape[1] and 0 <= j < x.shape[2] else np.zeros(x.shape[3])


def reference(x, offset, mask, kernel, stride, padding, dilation, groups, scale):
    """One output after the other, in float64. Taps are ordered column by column: the inner loop is the vertical one."""
    x, offset, mask = (t.double().numpy() for t in (x, offset, mask))
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = map(pair, (kernel, stride, padding, dilation))
    width = x.shape[3] // groups
    out = np.zeros((*offset.shape[:3], x.shape[3]))
    for n, i, j in np.ndindex(*offset.shape[:3]):
        for g in range(groups):
            channels, tap = slice(g * width, (g + 1) * width), g * kh * kw
            for kx in range(kw):
                for ky in range(kh):
                    across, down = offset[n, i, j, 2 * tap:2 * tap + 2]
                    middle_y, middle_x = dh * (kh - 1) // 2, dw * (kw - 1) // 2
                    y = i * sh - ph + middle_y + scale * (ky * dh - middle_y + down)
                    x_ = j * sw - pw + middle_x + scale * (kx * dw - middle_x + across)
                    top, left = math.floor(y), math.floor(x_)
                    value = sum((1 - abs(y - r)) * (1 - abs(x_ - c)) * pixel(x, n, r, c)[channels]
                                for r in (top, top + 1) for c in (left, left + 1))
                    out[n, i, j, channels] += mask[n, i, j, tap] * value
                    tap += 1
    return torch.from_numpy(out)


@pytest.mark.parametrize('case', [*CASES.values(), PADDED], ids=[*CASES, 'padded'])
def test_equals_the_definition(case):
    tensors, settings = inputs(*case), case[1:]
    expected = reference(*tensors, *settings)
    assert relative_error(dcnv3(*(t.double() for t in tensors), *settings), expected) < 1e-13
    assert relative_error(dcnv3(*tensors, *settings), expected) < 1e-5


@pytest.mark.parametrize('name', CASES)
def test_equals_the_official_pytorch_form(name, repo):
    expected = torch.from_numpy(np.load(repo / 'tests/data/internimage.npz')[f'dcnv3.{name}'])
    assert relative_error(dcnv3(*inputs(*CASES[name]), *CASES[name][1:]), expected) < 1e-5


def test_without_offsets_and_with_equal_weights_it_is_average_pooling():
    x = image(2, 7, 9, 6)
    zeros, equal = torch.zeros(2, 7, 9, 3 * 9 * 2), torch.full((2, 7, 9, 3 * 9), 1 / 9)
    pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    assert relative_error(dcnv3(x, zeros, equal, groups=3), pooled) < 1e-6


def test_taps_are_ordered_column_by_column_and_offsets_are_horizontal_first():
    x = image(1, 5, 6, 2)
    offset, mask = torch.zeros(1, 5, 6, 18), torch.zeros(1, 5, 6, 9)
    mask[..., 1] = 1  # the second tap: one column to the left, in the same row
    assert relative_error(dcnv3(x, offset, mask)[:, :, 1:], x[:, :, :-1]) < 1e-6
    offset[..., 2] = 1  # its horizontal offset
    assert relative_error(dcnv3(x, offset, mask), x) < 1e-6


@pytest.mark.parametrize('case', [((2, 5, 6, 12), 3, 1, 1, 1, 3, 0.5), CASES['wide']], ids=['padded to 88', 'wide'])
def test_dcnv4_reads_for_each_group_its_offsets_and_then_its_weights(case):
    x, offset, mask = inputs(*case)
    groups, taps = case[5], mask.shape[-1] // case[5]
    packed = torch.cat([part for g in range(groups) for part in (
        offset[..., 2 * taps * g:2 * taps * (g + 1)], mask[..., taps * g:taps * (g + 1)])], -1)
    expected = reference(x, offset, mask, *case[1:])
    over = torch.full((*packed.shape[:3], -packed.shape[3] % 8), torch.nan)
    for given in (packed, torch.cat([packed, over], -1)):
        assert relative_error(dcnv4(x, given, *case[1:]), expected) < 1e-5


def test_dcnv4_takes_a_packed_tensor_of_the_right_size():
    x, packed = image(1, 3, 4, 6), image(1, 3, 4, 81)
    with pytest.raises(ValueError, match=r'offset_mask must have 81 or 88 channels, got \(1, 3, 4, 80\)'):
        dcnv4(x, packed[..., :80], groups=3)
    with pytest.raises(ValueError, match=r'offset_mask must have 216 channels, got \(1, 3, 4, 81\)'):
        dcnv4(image(1, 3, 4, 8), packed, groups=8)


def test_gradients(monkeypatch):
    case = ((1, 3, 3, 4), (3, 2), (1, 2), 1, 1, 2, 1.5)
    tensors = [t.double().requires_grad_() for t in inputs(*case)]
    assert torch.autograd.gradcheck(lambda *t: dcnv3(*t, *case[1:]), tensors)
    monkeypatch.setattr(deformable, 'CHUNK_BYTES', 1)  # row by row
    assert torch.autograd.gradcheck(lambda *t: dcnv3(*t, *case[1:]), tensors, fast_mode=True)


class Storages(TorchDispatchMode):
    """The storages that are made in it, with their bytes, but for those of the given tensors."""

    def __init__(self, *known):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.made.append((StorageWeakRef(storage), storage.nbytes()))
        return out

    def alive(self):
        # several tensors may share a storage
        return sum({ref.cdata: size for ref, size in self.made if not ref.expired()}.values())


def test_memory_of_the_samples_is_bounded_in_both_directions(monkeypatch):
    """No tensor is larger than the bound, where the samples of the whole map take 36 times as much, and what is kept
    for the backward pass does not hold them."""
    bound = 2**17
    monkeypatch.setattr(deformable, 'CHUNK_BYTES', bound)
    x, offset, mask = inputs((2, 32, 32, 64), 3, 1, 1, 1, 8, 1.0)
    tensors = [t.requires_grad_() for t in (x, offset, mask)]
    samples = 9 * x.numel() * 4
    assert samples >= 36 * bound
    largest = max(bound, offset.numel() * 4)  # the gradient of the offsets has their size
    with Storages(*tensors) as forward:
        out = dcnv3(*tensors, groups=8)
    assert max(size for _, size in forward.made) <= max(bound, out.numel() * 4)
    assert forward.alive() <= out.numel() * 4 + bound
    with Storages(*tensors) as backward:
        out.sum().backward()
    assert max(size for _, size in backward.made) <= largest
    chunked = [t.grad.clone() for t in tensors]
    for t in tensors:
        t.grad = None
    monkeypatch.setattr(deformable, 'CHUNK_BYTES', 2**40)
    expected = dcnv3(*tensors, groups=8)
    assert torch.equal(expected, out)
    expected.sum().backward()
    for t, grad in zip(tensors, chunked):
        assert relative_error(grad, t.grad) < 1e-6


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_has_exact_positions(dtype):
    """On a map so wide that positions in half precision would be wrong by pixels."""
    x = image(1, 3, 3000, 4).to(dtype)
    offset, mask = torch.zeros(1, 3, 3000, 18, dtype=dtype), torch.zeros(1, 3, 3000, 9, dtype=dtype)
    mask[..., 4] = 1
    out = dcnv3(x, offset, mask)
    assert out.dtype == dtype and relative_error(out, x) < 1e-3
    tensors = inputs(*CASES['plain'])
    half = [t.to(dtype) for t in tensors]
    expected = dcnv3(*(t.float() for t in half), groups=2)
    assert relative_error(dcnv3(*half, groups=2), expected) < torch.finfo(dtype).eps
    with torch.autocast('cpu', torch.bfloat16):  # the mask of a softmax is float32, the rest is not
        mixed = dcnv3(half[0], half[1], half[2].float(), groups=2)
    assert mixed.dtype == dtype and torch.equal(mixed, dcnv3(*half, groups=2))


class Operator(nn.Module):
    """The operator as in a network: offsets and mask are computed from the map."""

    def __init__(self):
        super().__init__()
        self.offset, self.mask = nn.Linear(8, 2 * 9 * 2), nn.Linear(8, 2 * 9)

    def forward(self, images):
        x = images.permute(0, 2, 3, 1)
        return dcnv3(x, 3 * self.offset(x), self.mask(x), groups=2, offset_scale=1.5)


def test_exported_graphs_take_any_size(tmp_path):
    net, sizes = Operator().eval(), [torch.export.Dim(name, min=2, max=64) for name in ('batch', 'height', 'width')]
    x = torch.randn(2, 8, 6, 7)
    program = torch.export.export(net, (x, ), dynamic_shapes=({0: sizes[0], 2: sizes[1], 3: sizes[2]}, ), strict=False)
    script = torch.jit.trace(net, x)
    compiled = torch.compile(net, backend='eager', fullgraph=True)
    for shape in ((2, 8, 6, 7), (3, 8, 9, 5)):
        images = torch.randn(shape)
        expected = net(images)
        for form in (program.module(), script, compiled):
            assert relative_error(form(images), expected) < 1e-5


def test_onnx_has_operators_of_the_standard_alone(tmp_path):
    pytest.importorskip('onnxscript')
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    net, path = Operator().eval(), str(tmp_path / 'operator.onnx')
    formats.write_graph(formats.Graph(net, torch.randn(2, 8, 6, 7), 1, 'images', ['out'], {}), path, 'onnx', opset=18)
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    assert {entry.domain for entry in graph.opset_import} == {''}
    assert Counter(node.op_type for node in graph.graph.node)['GridSample'] == 9, 'one for each tap'
    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    for shape in ((2, 8, 6, 7), (3, 8, 11, 9)):
        images = torch.randn(shape)
        out, = session.run(None, {'images': images.numpy()})
        assert relative_error(torch.from_numpy(out), net(images)) < 1e-5


def test_no_images_and_one_pixel():
    tensors = [t.requires_grad_() for t in inputs((0, 5, 7, 8), 3, 1, 1, 1, 2, 1.0)]
    out = dcnv3(*tensors, groups=2)
    out.sum().backward()
    assert out.shape == (0, 5, 7, 8) and all(t.grad is not None for t in tensors)
    case = ((1, 1, 1, 4), 3, 1, 1, 1, 2, 1.0)
    assert relative_error(dcnv3(*inputs(*case), *case[1:]), reference(*inputs(*case), *case[1:])) < 1e-6


@pytest.mark.parametrize('change, message', [
    (dict(groups=3), '8 channels do not divide into 3 groups'),
    (dict(groups=4), r'offset must have shape \(2, 5, 7, 72\), got \(2, 5, 7, 36\)'),
    (dict(kernel_size=5), r'offset must have shape \(2, 3, 5, 100\)'),
    (dict(stride=0), 'stride must be an integer of at least 1, or two, got 0'),
    (dict(padding=(1, 1, 1)), r'padding must be an integer of at least 0, or two, got \(1, 1, 1\)'),
])
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dcnv3(*inputs(*CASES['plain']), **{'groups': 2, **change})
    x, offset, mask = inputs(*CASES['plain'])
    with pytest.raises(ValueError, match=r'mask must have shape \(2, 5, 7, 18\), got \(2, 5, 7, 9\)'):
        dcnv3(x, offset, mask[..., :9], groups=2)
    with pytest.raises(ValueError, match=r'takes a map \(N, H, W, C\)'):
        dcnv3(x[0], offset, mask, groups=2)
