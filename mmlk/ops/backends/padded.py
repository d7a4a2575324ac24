"""Direct convolution of an input that is padded beforehand, so that the CPU library's fast kernels apply.

Each gradient is written as a forward convolution: the input's with the flipped kernel, the weight's with the output
gradient as the kernel.
"""
import torch
import torch.nn.functional as F

from .base import Backend


class Padded(Backend):
    name = 'padded'

    def can_run(self, device, dtype):
        if device.type != 'cpu':
            return False, f'it mends a slow path of the CPU library; the device is {device.type}'
        if dtype not in (torch.float32, torch.float64):
            return False, f'it runs in float32 and float64, not {dtype}'
        return True, ''

    def cost(self, step, problem):
        padded = problem.batch * problem.channels * (problem.height + problem.kh) * (problem.width + problem.kw)
        return 3e-5 + padded / 1e9 + problem.macs / 30e9

    def forward(self, x, weight, problem):
        return F.conv2d(F.pad(x, problem.padding), weight, groups=problem.channels)

    def grad_input(self, grad, weight, problem):
        left, right, top, bottom = problem.padding
        return F.conv2d(F.pad(grad, (right, left, bottom, top)), weight.flip(-1, -2), groups=problem.channels)

    def grad_weight(self, grad, x, problem):
        planes = problem.batch * problem.channels
        padded = F.pad(x, problem.padding)
        taps = F.conv2d(padded.reshape(1, planes, *padded.shape[-2:]),
                        grad.reshape(planes, 1, problem.height, problem.width), groups=planes)
        return taps.reshape(problem.batch, problem.channels, 1, problem.kh, problem.kw).sum(0)
