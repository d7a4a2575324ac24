"""PyTorch's own convolution: runs everywhere, and is what every other backend is measured against."""
import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Backend, Problem


def conv2d_same(x: Tensor, weight: Tensor, bias: Tensor, problem: Problem) -> Tensor:
    """The operator as a single ``F.conv2d``, the form that exports as one Conv."""
    if problem.kh % 2 and problem.kw % 2:
        padding = (problem.kh // 2, problem.kw // 2)
    else:
        x, padding = F.pad(x, problem.padding), 0
    return F.conv2d(x, weight, bias, padding=padding, groups=problem.channels)


class Native(Backend):
    name = 'native'

    def can_run(self, device, dtype):
        return True, ''

    def cost(self, step, problem):
        # oneDNN's fast depthwise kernels want a left padding of at most 4 (AVX2) and, for the weight gradient, a
        # kernel of at most 3; past that it falls to a slow path.
        small = max(problem.kh, problem.kw) <= (3 if step == 'grad_weight' else 9)
        rate = 30e9 if small else 6e9 if step == 'grad_input' else 1e9
        return 1e-5 + problem.macs / rate

    def forward(self, x, weight, problem):
        return conv2d_same(x, weight, None, problem)

    def grad_input(self, grad, weight, problem):
        return self._backward(grad, grad, weight, problem, (True, False, False))[0]

    def grad_weight(self, grad, x, problem):
        weight = x.new_empty(problem.channels, 1, problem.kh, problem.kw)
        return self._backward(grad, x, weight, problem, (False, True, False))[1]

    @staticmethod
    def _backward(grad, x, weight, problem, mask):
        left, right, top, bottom = problem.padding
        if (left, top) != (right, bottom):
            x = F.pad(x, problem.padding)
            left = top = 0
        grads = torch.ops.aten.convolution_backward(
            grad, x, weight, None, (1, 1), (top, left), (1, 1), False, (0, 0), problem.channels, mask)
        if mask[0] and x.shape != grad.shape:
            pads = problem.padding
            grads = (grads[0][:, :, pads[2]:pads[2] + problem.height, pads[0]:pads[0] + problem.width], ) + grads[1:]
        return grads
