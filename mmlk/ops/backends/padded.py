"""Direct convolution of an input that has been padded before, so that oneDNN can use its fast functions on a CPU.

oneDNN's fast depthwise functions refuse a large padding. Each gradient is computed as a forward convolution, too: that
of the input as the convolution of the output's gradient with the flipped kernel, and that of the weight as the
convolution of the input with the output's gradient as the kernel.
"""
from typing import Optional, Tuple

import torch.nn.functional as F
from torch import Tensor

from .base import Backend, ConvProblem, compute_dtype, half_precision_and_up


class Padded(Backend):
    name = 'padded'

    def can_run(self, problem: ConvProblem) -> Tuple[bool, str]:
        if problem.device.type != 'cpu':
            return False, f'it mends a slow path of the CPU library; the device is {problem.device.type}'
        return half_precision_and_up(problem.dtype)

    def cost(self, step: str, problem: ConvProblem) -> float:
        padded = problem.batch * problem.channels * (problem.height + problem.kh) * (problem.width + problem.kw)
        return (2 if step == 'gradients' else 1) * (3e-5 + padded / 4e9 + problem.macs / 45e9)

    def forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem) -> Tensor:
        return self._convolve(x, problem.padding, weight, bias, problem)

    def grad_input(self, grad: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
        left, right, top, bottom = problem.padding
        return self._convolve(grad, (right, left, bottom, top), weight.flip(-1, -2), None, problem)

    @staticmethod
    def _convolve(x: Tensor, padding: Tuple[int, int, int, int], weight: Tensor, bias: Optional[Tensor],
                  problem: ConvProblem) -> Tensor:
        """Pads ``x`` (N, C, H, W) by (left, right, top, bottom) and convolves it."""
        dtype = compute_dtype(problem.dtype)
        out = F.conv2d(F.pad(x.to(dtype), padding), weight.to(dtype), bias if bias is None else bias.to(dtype),
                       groups=problem.channels)
        return out.to(problem.dtype).contiguous(memory_format=problem.memory_format)

    def grad_weight(self, grad: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
        planes, dtype = problem.batch * problem.channels, compute_dtype(problem.dtype)
        padded = F.pad(x.to(dtype).contiguous(), problem.padding)
        taps = F.conv2d(padded.reshape(1, planes, *padded.shape[-2:]),
                        grad.to(dtype).reshape(planes, 1, problem.height, problem.width), groups=planes)
        return taps.reshape(problem.batch, problem.channels, 1, problem.kh, problem.kw).sum(0).to(problem.dtype)
