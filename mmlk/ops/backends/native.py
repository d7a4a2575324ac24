"""PyTorch's own convolution: runs everywhere, and is what every other backend is measured against."""
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Backend, ConvProblem, compute_dtype, tf32_allowed

_MAX_FAST_KERNEL = 13  # kernel of oneDNN's fast forward path


def exact_on_cuda(problem: ConvProblem) -> bool:
    """Whether channels_last maps must not reach cuDNN, which rounds float32 to tf32 unless told not to.

    PyTorch gives it every channels_last convolution, and of contiguous float32 ones with depthwise weights none.
    """
    return problem.device.type == 'cuda' and problem.dtype == torch.float32 and not tf32_allowed()


def conv2d_same(x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem,
                mirrored: bool = False) -> Tensor:
    """The operator as a single ``F.conv2d``, the form that exports as one Conv.

    ``mirrored`` puts the extra column and row of an even kernel's padding on the other side.
    """
    padding = (problem.kh // 2, problem.kw // 2)
    if not (problem.kh % 2 and problem.kw % 2):
        left, right, top, bottom = problem.padding
        x, padding = F.pad(x, (right, left, bottom, top) if mirrored else problem.padding), (0, 0)
    return F.conv2d(x, weight, bias, padding=padding, groups=problem.channels)


def convolution_gradients(grad: Tensor, x: Optional[Tensor], weight: Optional[Tensor],
                          problem: ConvProblem) -> Tuple[Optional[Tensor], Optional[Tensor]]:
    """PyTorch's gradients of input and weight, each where its other factor is given; differentiable once more."""
    mask = weight is not None, x is not None, False
    if weight is None:
        assert x is not None
        weight = x.new_empty(problem.channels, 1, problem.kh, problem.kw)
    if x is None:
        x = grad
    if exact_on_cuda(problem):
        grad, x, weight = grad.contiguous(), x.contiguous(), weight.contiguous()
    left, right, top, bottom = problem.padding
    even = (left, top) != (right, bottom)
    grad_x, grad_w, _ = torch.ops.aten.convolution_backward(
        grad, F.pad(x, problem.padding) if even else x, weight, None, (1, 1), (0, 0) if even else (top, left), (1, 1),
        False, (0, 0), problem.channels, mask)
    if even and mask[0]:
        grad_x = grad_x[:, :, top:top + problem.height, left:left + problem.width]
    return grad_x if mask[0] else None, grad_w if mask[1] else None


def plain_gradients(grad: Tensor, x: Optional[Tensor], weight: Optional[Tensor],
                    problem: ConvProblem) -> Tuple[Optional[Tensor], Optional[Tensor]]:
    """:func:`convolution_gradients` of any layout in the problem's dtype.

    On CPUs PyTorch sums the input's gradient in half precision itself: 2.7 % off in bfloat16 at 31x31.
    """
    dtype = compute_dtype(problem.dtype) if problem.device.type == 'cpu' else problem.dtype
    grad_x, grad_w = convolution_gradients(grad.to(dtype), x if x is None else x.to(dtype),
                                           weight if weight is None else weight.to(dtype), problem)
    return (grad_x if grad_x is None else grad_x.to(problem.dtype),
            grad_w if grad_w is None else grad_w.to(problem.dtype))


def convolution_dtype(problem: ConvProblem) -> torch.dtype:
    """What PyTorch's forward convolution is best computed in.

    Half precision on a CPU is slower than float32 where kernels are large, and oneDNN does not come to an end of
    building its kernel for 16 channels or fewer in channels_last (3.11, on CPUs with AVX512-BF16).
    """
    half = problem.device.type == 'cpu' and problem.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half and max(problem.kh, problem.kw) > _MAX_FAST_KERNEL else problem.dtype


def convolve(x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem, mirrored: bool = False) -> Tensor:
    """:func:`conv2d_same` in :func:`convolution_dtype`, its output in the problem's dtype and memory format."""
    dtype = convolution_dtype(problem)
    if exact_on_cuda(problem):
        x, weight = x.contiguous(), weight.contiguous()
    out = conv2d_same(x.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype), problem, mirrored)
    return out.to(problem.dtype).contiguous(memory_format=problem.memory_format)


class Native(Backend):
    name = 'native'
    joint = True

    def can_run(self, problem: ConvProblem) -> Tuple[bool, str]:
        return True, ''

    def cost(self, step: str, problem: ConvProblem) -> float:
        if step == 'gradients':
            return self.cost('grad_input', problem) + self.cost('grad_weight', problem)
        if problem.device.type != 'cpu':
            return 1e-5 + problem.macs / 2e12
        # oneDNN's fast depthwise kernels want a left padding of at most 4 (AVX2) or 6 (AVX-512) and, for the weight
        # gradient, a kernel of at most 3; past that it falls to a slow path.
        small = max(problem.kh, problem.kw) <= (3 if step == 'grad_weight' else _MAX_FAST_KERNEL)
        rate = 30e9 if small else 3e9
        return 1e-5 + problem.macs / rate

    def forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem) -> Tensor:
        return convolve(x, weight, bias, problem)

    def grad_input(self, grad: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
        return self.gradients(grad, None, weight, problem)[0]

    def grad_weight(self, grad: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
        return self.gradients(grad, x, None, problem)[1]

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, problem: ConvProblem) -> Tuple[Tensor, Tensor]:
        grad_x, grad_w = plain_gradients(grad, x, weight, problem)
        return (grad_x if grad_x is None else grad_x.contiguous(memory_format=problem.memory_format),
                grad_w if grad_w is None else grad_w.contiguous())
