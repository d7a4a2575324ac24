"""Depthwise convolution with large kernels: a function, and a module that is an ``nn.Conv2d``."""
import logging
from functools import lru_cache
from typing import Optional, Tuple, Union

import torch
from torch import Tensor, nn

from .backends import Problem, choose, get
from .backends.native import conv2d_same

_logger = logging.getLogger(__name__)


@lru_cache(maxsize=4096)
def _methods(problem: Problem):
    """The backends of forward, grad-input and grad-weight for one problem."""
    chosen = tuple(choose(step, problem) for step in ('forward', 'grad_input', 'grad_weight'))
    _logger.debug('%s: %s', problem, ', '.join(b.name for b in chosen))
    return chosen


class _DepthwiseConv2d(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, weight, problem, methods):
        ctx.save_for_backward(x, weight)
        ctx.problem, ctx.methods = problem, methods
        return methods[0].forward(x, weight, problem)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        _, by_input, by_weight = ctx.methods
        if torch.is_grad_enabled():  # create_graph: only PyTorch's own gradients can be differentiated again
            by_input = by_weight = get('native', x.device, x.dtype)
        grad_x = by_input.grad_input(grad, weight, ctx.problem) if ctx.needs_input_grad[0] else None
        grad_w = by_weight.grad_weight(grad, x, ctx.problem) if ctx.needs_input_grad[1] else None
        return grad_x, grad_w, None, None


def _check(input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> None:
    if input.dim() != 4 or weight.dim() != 4 or weight.shape[1] != 1 or weight.shape[0] != input.shape[1]:
        raise ValueError(
            'depthwise_conv2d takes input (N, C, H, W) and weight (C, 1, kh, kw), '
            f'got {tuple(input.shape)} and {tuple(weight.shape)}')
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f'bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}')


def depthwise_conv2d(input: Tensor, weight: Tensor, bias: Optional[Tensor] = None, *,
                     backend: Optional[str] = None) -> Tensor:
    """Depthwise convolution, stride 1, dilation 1, output as large as the input.

    Args:
        input: (N, C, H, W).
        weight: (C, 1, kh, kw); odd, even and rectangular kernels, larger than the map too.
        bias: (C,) or None.
        backend: Name of the backend for all three passes; None takes the cheapest for each. Under ``torch.compile``,
            export and autocast, and on devices with nothing better, that is one ``F.conv2d``.

    Returns:
        (N, C, H, W), the input's dtype (autocast's under autocast).

    Raises:
        ValueError: Shapes do not fit, or the named backend cannot run here (with its reason).
    """
    _check(input, weight, bias)
    problem = Problem(input.device, input.dtype, *input.shape, *weight.shape[-2:])
    if backend is not None:
        methods = (get(backend, input.device, input.dtype), ) * 3
    elif (input.device.type != 'cpu' or torch.jit.is_tracing() or torch.compiler.is_compiling()
          or torch.is_autocast_enabled('cpu')):
        return conv2d_same(input, weight, bias, problem)
    else:
        methods = _methods(problem)
    if not input.numel() or all(m.name == 'native' for m in methods):
        return conv2d_same(input, weight, bias, problem)
    out = _DepthwiseConv2d.apply(input, weight, problem, methods)
    return out if bias is None else out + bias.reshape(1, -1, 1, 1)


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with groups = channels, stride 1 and "same" padding, run by :func:`depthwise_conv2d`.

    Its geometry attributes are true and its state dict is that of the ``nn.Conv2d`` it stands for.

    Args:
        channels: Input and output channels.
        kernel_size: One size, or (kh, kw).
        bias: Whether it has a bias (channels,).
    """

    def __init__(self, channels: int, kernel_size: Union[int, Tuple[int, int]], bias: bool = True):
        kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        padding = (kh // 2, kw // 2) if kh % 2 and kw % 2 else 'same'
        super().__init__(channels, channels, (kh, kw), padding=padding, groups=channels, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return depthwise_conv2d(input, self.weight, self.bias)
