"""The global filter against its definition, on any size, in any dtype, whatever the FFT library does."""
import math

import pytest
import torch

from mmlk.ops.global_filter import global_filter2d, multiply_adds, resize_filter
from tests.utils import image, relative_error

SIZES = [(6, 8), (7, 9), (4, 5), (5, 4), (1, 1), (3, 2), (1, 6), (6, 1)]


def reference(x, weight):
    """Sums over the half spectrum, written out in float64; each column stands for its mirror image too, but for the
    first and, when the width is even, the last."""
    height, width = x.shape[2:]
    twice = torch.full((width // 2 + 1, ), 2.0).double()
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    rows, columns = (torch.polar(torch.ones(n, m).double(), 2 * math.pi / n * torch.outer(torch.arange(n),
                                                                                        torch.arange(m)).double())
                     for n, m in ((height, height), (width, width // 2 + 1)))
    spectrum = torch.einsum('nchw,hu,wv->ncuv', x.to(torch.complex128), rows.conj(), columns.conj())
    product = spectrum * torch.view_as_complex(weight.double()) * twice
    return torch.einsum('ncuv,hu,wv->nchw', product, rows, columns).real / (height * width)


def case(size, channels=3):
    x = torch.randn(2, channels, *size)
    return x, torch.randn(channels, size[0], size[1] // 2 + 1, 2)


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_equals_the_definition(size):
    x, weight = case(size)
    assert relative_error(global_filter2d(x.double(), weight.double()), reference(x, weight)) < 1e-13
    assert relative_error(global_filter2d(x, weight), reference(x, weight)) < 1e-6


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_nothing_is_left_to_the_fft_library(size, monkeypatch):
    """What goes into the inverse transform is the spectrum of a real map: libraries differ on anything else."""
    inverse, seen = torch.fft.irfft2, []
    monkeypatch.setattr(torch.fft, 'irfft2', lambda z, **kwargs: seen.append(z) or inverse(z, **kwargs))
    x, weight = case(size)
    out = global_filter2d(x.double(), weight.double())
    assert relative_error(torch.view_as_real(torch.fft.rfft2(out, norm='ortho')), torch.view_as_real(seen[0])) < 1e-13


@pytest.mark.parametrize('size', [(3, 4), (4, 3)], ids=str)
def test_gradients(size):
    x, weight = (t.double().requires_grad_() for t in case(size, 2))
    assert torch.autograd.gradcheck(global_filter2d, (x, weight))
    small = torch.randn(2, 2, 2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(global_filter2d, (x, small))


def test_a_filter_of_ones_changes_nothing():
    x, weight = case((5, 7))
    weight[..., 0], weight[..., 1] = 1, 0
    torch.testing.assert_close(global_filter2d(x, weight), x)


def test_filters_around_the_border():
    x, weight = case((6, 7))
    moved = global_filter2d(x.roll((2, 3), (2, 3)), weight)
    torch.testing.assert_close(moved, global_filter2d(x, weight).roll((2, 3), (2, 3)))


@pytest.mark.parametrize('size', [(5, 9), (3, 4), (9, 2), (1, 1)], ids=str)
def test_resizing_keeps_linear_filters_and_corners(size):
    def ramp(h, w):
        plane = torch.linspace(0, 1, h)[:, None] + 3 * torch.linspace(0, 1, w) if h > 1 else torch.zeros(1, 1)
        return torch.stack((plane, 2 - plane), -1)[None]
    torch.testing.assert_close(resize_filter(ramp(7, 5), size), ramp(*size))


def test_a_filter_of_another_size_is_resized_and_one_of_the_size_is_not():
    x, _ = case((9, 13))
    weight = torch.randn(3, 7, 4, 2)
    assert resize_filter(weight, (7, 4)) is weight
    torch.testing.assert_close(global_filter2d(x, weight), global_filter2d(x, resize_filter(weight, (9, 7))))


@pytest.mark.parametrize('dtype, tolerance', [(torch.float16, 5e-4), (torch.bfloat16, 4e-3)], ids=str)
def test_half_precision_is_rounded_at_the_end_only(dtype, tolerance):
    x, weight = (t.to(dtype) for t in case((7, 9)))
    out = global_filter2d(x, weight)
    assert out.dtype == dtype
    assert torch.equal(out, global_filter2d(x.float(), weight.float()).to(dtype))
    assert relative_error(out, reference(x, weight)) < tolerance


def test_autocast_changes_nothing():
    x, weight = case((7, 9))
    with torch.autocast('cpu', torch.bfloat16):
        out = global_filter2d(x, weight[:, :5, :3].contiguous())
    assert torch.equal(out, global_filter2d(x, weight[:, :5, :3].contiguous()))


def test_any_memory_layout():
    x, weight = case((6, 9))
    strided = weight.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3)
    torch.testing.assert_close(global_filter2d(x.contiguous(memory_format=torch.channels_last), strided),
                               global_filter2d(x, weight))


@pytest.mark.parametrize('x, weight', [((3, 4, 4), (3, 4, 3, 2)), ((1, 3, 4, 4), (2, 4, 3, 2)),
                                       ((1, 3, 4, 4), (3, 4, 3, 1)), ((1, 3, 4, 4), (3, 4, 3))])
def test_wrong_shapes_are_refused(x, weight):
    with pytest.raises(ValueError, match=r'takes a map \(N, C, H, W\) and a filter \(C, h, w, 2\), got'):
        global_filter2d(torch.zeros(x), torch.zeros(weight))


def test_multiply_adds_are_the_official_count():
    assert multiply_adds((1, 384, 14, 14)) == 196 * 384 * 8
    assert multiply_adds((2, 5, 7, 3), dim=(1, 2)) == 2 * 5 * 7 * 3 * 6
    assert multiply_adds((1, 8, 1, 1)) == 0


def test_exported_graphs_take_other_sizes():
    weight = image(3, 6, 4, 2)

    class Net(torch.nn.Module):

        def forward(self, x):
            return global_filter2d(x, weight)

    net, x = Net(), image(1, 3, 6, 6)  # the size of the filter, which must not be taken for granted
    sides = {2: torch.export.Dim('height', min=3), 3: torch.export.Dim('width', min=3)}
    program = torch.export.export(net, (x, ), dynamic_shapes=(sides, )).module()
    traced = torch.jit.trace(net, x, check_trace=False)
    for size in ((6, 6), (6, 7), (9, 12), (8, 5)):
        other = image(1, 3, *size)
        for graph in (program, traced):
            assert relative_error(graph(other), net(other)) < 1e-6
