"""PyTorch's own convolution. It can run every problem. Other backends are checked against it and fall back to it."""
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Backend, ConvProblem, compute_dtype, tf32_allowed

_MAX_FAST_KERNEL = 13  # maximum kernel size of oneDNN's fast forward function


def exact_on_cuda(problem: ConvProblem) -> bool:
    """Returns whether maps must be contiguous, so that PyTorch does not use cuDNN, which may round float32 to tf32.

    PyTorch uses cuDNN for every convolution in channels_last. For contiguous float32 maps and depthwise weights it has
    a kernel of its own, which does not round.
    """
    return problem.device.type == 'cuda' and problem.dtype == torch.float32 and not tf32_allowed()


def conv2d_same(x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem,
                mirrored: bool = False) -> Tensor:
    """Computes the convolution by a single ``F.conv2d``, which is exported as one Conv node.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, kh, kw).
        bias: (C,) or None.
        problem: The problem; only its kernel size and channels are used.
        mirrored: If True, the additional row and column of an even kernel's padding are on the top and on the left.

    Returns:
        (N, C, H, W).
    """
    padding = (problem.kh // 2, problem.kw // 2)
    if not (problem.kh % 2 and problem.kw % 2):
        left, right, top, bottom = problem.padding
        x, padding = F.pad(x, (right, left, bottom, top) if mirrored else problem.padding), (0, 0)
    return F.conv2d(x, weight, bias, padding=padding, groups=problem.channels)


def convolution_gradients(grad: Tensor, x: Optional[Tensor], weight: Optional[Tensor],
                          problem: ConvProblem) -> Tuple[Optional[Tensor], Optional[Tensor]]:
    """Computes the gradients by PyTorch's own function, which can be differentiated again.

    Args:
        grad: Gradient of the output, (N, C, H, W).
        x: Input, (N, C, H, W); None if the gradient of the weight is not needed.
        weight: (C, 1, kh, kw); None if the gradient of the input is not needed.
        problem: The problem.

    Returns:
        The gradient of the input, or None, and the gradient of the weight, or None.
    """
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
    """Computes :func:`convolution_gradients`, on CPUs in at least float32, and returns it in the problem's dtype.

    In half precision on CPUs, PyTorch would also add up the gradient of the input in half precision: for bfloat16 and a
    31x31 kernel that gives an error of 2.7 %. The memory format of the result is not specified.
    """
    dtype = compute_dtype(problem.dtype) if problem.device.type == 'cpu' else problem.dtype
    grad_x, grad_w = convolution_gradients(grad.to(dtype), x if x is None else x.to(dtype),
                                           weight if weight is None else weight.to(dtype), problem)
    return (grad_x if grad_x is None else grad_x.to(problem.dtype),
            grad_w if grad_w is None else grad_w.to(problem.dtype))


def convolution_dtype(problem: ConvProblem) -> torch.dtype:
    """Returns the dtype in which PyTorch's forward convolution is fastest.

    On a CPU, half precision is slower than float32 if the kernel is large. Also, for at most 16 channels in
    channels_last, oneDNN 3.11 never finishes building its half-precision kernel on CPUs with AVX512-BF16.
    """
    half = problem.device.type == 'cpu' and problem.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half and max(problem.kh, problem.kw) > _MAX_FAST_KERNEL else problem.dtype


def convolve(x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem, mirrored: bool = False) -> Tensor:
    """Computes :func:`conv2d_same` in :func:`convolution_dtype`; returns the problem's dtype and memory format."""
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
        # oneDNN's fast depthwise functions need a left padding of at most 4 (AVX2) or 6 (AVX-512) and, for the gradient
        # of the weight, a kernel of at most 3x3. Otherwise it uses a slow reference function.
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
