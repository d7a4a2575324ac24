"""What a caller may hand to the operator: any strides, among them 0, and tensors of inference mode before training."""
import pytest
import torch
import torch.nn.functional as F

from mmlk.ops import depthwise_conv2d

BACKENDS = ['native', 'padded', 'channels_last', 'dft', 'fft', 'fft_pairs', None]
LAYOUTS = {
    'expanded': lambda x: x[:1, :1].expand(x.shape),
    'transposed': lambda x: x.transpose(2, 3),
    'every second channel': lambda x: torch.cat([x, x], dim=1)[:, ::2],
    'every second pixel': lambda x: F.interpolate(x, scale_factor=2)[:, :, ::2, ::2],
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'one row': lambda x: x[:, :, 3:4],
}


def relative(actual, expected):
    return (actual.double() - expected).abs().max().item() / expected.abs().max().item()


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('backend', BACKENDS)
def test_strides(backend, layout):
    """Outputs and gradients, of a gradient with strides of 0, against float64 on contiguous maps."""
    x = LAYOUTS[layout](torch.randn(2, 6, 40, 36)).detach().requires_grad_()
    weight = torch.randn(1, 1, 21, 21).expand(6, 1, 21, 21)
    out = depthwise_conv2d(x, weight, backend=backend)
    expected = F.conv2d(x.double().contiguous(), weight.double(), padding=10, groups=6)
    cotangent = torch.randn(()).expand_as(out)
    grad, = torch.autograd.grad(out, x, cotangent)
    expected_grad, = torch.autograd.grad(expected, x, cotangent.double())
    assert relative(out, expected) < 1e-5 and relative(grad, expected_grad) < 1e-5


@pytest.mark.parametrize('backend', BACKENDS)
def test_training_after_inference_mode(backend):
    """Tables and spectra that inference mode has left behind do not stop a training step, nor change it."""
    x, weight, bias = torch.randn(2, 6, 40, 36), torch.randn(6, 1, 21, 21), torch.randn(6)
    with torch.inference_mode():
        for _ in range(4):
            depthwise_conv2d(x.clone(), weight, bias, backend=backend)
            depthwise_conv2d(x, weight.clone(), backend=backend)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    for _ in range(4):
        out = depthwise_conv2d(*leaves, backend=backend)
        grads = torch.autograd.grad(out.square().sum(), leaves)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = F.conv2d(*doubles, padding=10, groups=6)
    assert relative(out, expected) < 1e-5
    for grad, theirs in zip(grads, torch.autograd.grad(expected.square().sum(), doubles), strict=True):
        assert relative(grad, theirs) < 2e-5
