"""PyTorch's convolution of maps in channels_last: the format of oneDNN's AVX-512 kernels on CPUs, and of cuDNN's.

The gradient of the input is computed as a forward convolution of the output's gradient with the flipped kernel, because
oneDNN's own function for that gradient is slow.
"""
from typing import Optional, Tuple

import torch
from torch import Tensor

from .base import Backend, ConvProblem
from .native import convolution_dtype, convolution_gradients, convolve, exact_on_cuda


def _last(tensor: Tensor) -> Tensor:
    """Returns the tensor in channels_last; a copy only if needed."""
    return tensor.contiguous(memory_format=torch.channels_last)


class ChannelsLast(Backend):
    name = 'channels_last'

    def can_run(self, problem: ConvProblem) -> Tuple[bool, str]:
        if problem.device.type not in ('cpu', 'cuda'):
            return False, f'it runs on cpu and cuda, not {problem.device.type}'
        if exact_on_cuda(problem):
            return False, "cuDNN would round float32 to tf32; torch.set_float32_matmul_precision('high') allows that"
        return True, ''

    def cost(self, step: str, problem: ConvProblem) -> float:
        steps = 2 if step == 'gradients' else 1
        copied = 0 if problem.channels_last else 2 * problem.batch * problem.channels * problem.height * problem.width
        if problem.device.type == 'cuda':
            return steps * (3e-5 + copied / 2e11 + problem.macs / 3e12)
        rate = 2e9 if step in ('grad_weight', 'gradients') else 40e9
        return steps * (3e-5 + copied / 4e9 + problem.macs / rate)

    def forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem) -> Tensor:
        return convolve(_last(x), _last(weight), bias, problem)

    def grad_input(self, grad: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
        return convolve(_last(grad), _last(weight.flip(-1, -2)), None, problem, mirrored=True)

    def grad_weight(self, grad: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
        dtype = convolution_dtype(problem)
        _, grad_w = convolution_gradients(_last(grad.to(dtype)), _last(x.to(dtype)), None, problem)
        assert grad_w is not None
        return grad_w.to(problem.dtype).contiguous()
