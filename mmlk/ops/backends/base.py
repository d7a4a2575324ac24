"""What a backend is: three passes of one operator, the cases it can run, and what they are estimated to cost."""
from typing import NamedTuple, Tuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """One depthwise convolution: stride 1, dilation 1, output as large as the input."""

    device: torch.device
    dtype: torch.dtype
    batch: int
    channels: int
    height: int
    width: int
    kh: int
    kw: int

    @property
    def macs(self) -> int:
        """Multiply-adds of the direct method."""
        return self.batch * self.channels * self.height * self.width * self.kh * self.kw

    @property
    def padding(self) -> Tuple[int, int, int, int]:
        """Left, right, top, bottom, in ``F.pad``'s order; an even kernel has the extra column on the right."""
        left, top = (self.kw - 1) // 2, (self.kh - 1) // 2
        return left, self.kw - 1 - left, top, self.kh - 1 - top


class Backend:
    """One way to compute the convolution and both its gradients.

    Every pass takes and returns plain tensors: ``x`` and ``grad`` (N, C, H, W), ``weight`` (C, 1, kh, kw). Autograd is
    the caller's business. ``costs`` are estimated seconds per pass, comparable between backends of one device.
    """

    name: str

    def can_run(self, device: torch.device, dtype: torch.dtype) -> Tuple[bool, str]:
        """Whether it runs on this device and dtype, and why not."""
        raise NotImplementedError

    def cost(self, step: str, problem: Problem) -> float:
        """Estimated seconds of one pass (``'forward'``, ``'grad_input'`` or ``'grad_weight'``)."""
        raise NotImplementedError

    def forward(self, x: Tensor, weight: Tensor, problem: Problem) -> Tensor:
        raise NotImplementedError

    def grad_input(self, grad: Tensor, weight: Tensor, problem: Problem) -> Tensor:
        raise NotImplementedError

    def grad_weight(self, grad: Tensor, x: Tensor, problem: Problem) -> Tensor:
        raise NotImplementedError
