"""What a backend is: three passes of one operator, the cases it can run, and what they are estimated to cost."""
from contextlib import nullcontext
from typing import ContextManager, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

# 'inference' is a forward pass of a weight that comes again unchanged, 'gradients' both gradients in one call, and
# 'training' a forward pass that leaves something for both gradients, and these
STEPS = ('inference', 'forward', 'grad_input', 'grad_weight', 'gradients', 'training')


class ConvProblem(NamedTuple):
    """One depthwise convolution: stride 1, dilation 1, output as large as the input."""

    device: torch.device
    dtype: torch.dtype
    batch: int
    channels: int
    height: int
    width: int
    kh: int
    kw: int
    channels_last: bool = False

    @classmethod
    def of(cls, x: Tensor, weight: Tensor) -> 'ConvProblem':
        """The problem of an input (N, C, H, W) and a weight (C, 1, kh, kw)."""
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        return cls(x.device, x.dtype, batch, channels, height, width, weight.shape[-2], weight.shape[-1], last)

    @property
    def macs(self) -> int:
        """Multiply-adds of the direct method."""
        return self.batch * self.channels * self.height * self.width * self.kh * self.kw

    @property
    def padding(self) -> Tuple[int, int, int, int]:
        """Left, right, top, bottom, in ``F.pad``'s order; an even kernel has the extra column on the right."""
        left, top = (self.kw - 1) // 2, (self.kh - 1) // 2
        return left, self.kw - 1 - left, top, self.kh - 1 - top

    @property
    def memory_format(self) -> torch.memory_format:
        """That of the input, the output and the input's gradient."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class Reach(NamedTuple):
    """Along one axis, the taps that can meet the map: ``before`` and ``after`` the centre, which is tap ``centre``.

    Taps further out than the map is long only ever meet padding.
    """

    extent: int
    before: int
    after: int
    centre: int

    @classmethod
    def of(cls, problem: ConvProblem) -> Tuple['Reach', 'Reach']:
        """Those of the rows and of the columns."""
        rows, columns = (cls(extent, min((k - 1) // 2, extent - 1), min(k // 2, extent - 1), (k - 1) // 2)
                         for extent, k in ((problem.height, problem.kh), (problem.width, problem.kw)))
        return rows, columns

    @property
    def taps(self) -> slice:
        return slice(self.centre - self.before, self.centre + self.after + 1)

    @property
    def circle(self) -> int:
        """The least circular length: what wraps around falls outside the map."""
        return self.extent + max(self.before, self.after)


def channel_chunks(problem: ConvProblem, area: int, elements: int) -> List[slice]:
    """Slices of the channels, of even size, with at most ``elements`` in a chunk's maps of ``area`` each."""
    most = max(1, elements // (max(1, problem.batch) * area))
    size = -(-problem.channels // -(-problem.channels // most))
    return [slice(c, min(c + size, problem.channels)) for c in range(0, problem.channels, size)]


def half_precision_and_up(dtype: torch.dtype) -> Tuple[bool, str]:
    """The verdict of a backend that computes half precision in float32."""
    ok = dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return ok, '' if ok else f'it runs in float16, bfloat16, float32 and float64, not {dtype}'


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for itself, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tf32_allowed() -> bool:
    """Whether the person lets float32 be rounded to tf32 on a GPU: by the flag of matrix products, off by default.

    That of convolutions is on by default, and PyTorch's depthwise convolution is exact all the same.
    """
    flags = torch.backends.cuda.matmul
    # the former from torch 2.9
    return flags.fp32_precision == 'tf32' if hasattr(flags, 'fp32_precision') else flags.allow_tf32


def given_dtypes(device: torch.device) -> ContextManager[object]:
    """A context in which autocast leaves tensors in the dtypes that they have."""
    mixed = device.type != 'meta' and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if mixed else nullcontext()


class Backend:
    """One way to compute the convolution and both its gradients.

    Every pass takes and returns plain tensors of the problem's dtype: ``x``, ``grad`` and the maps it returns
    (N, C, H, W), in any strides in and the problem's memory format out, ``weight`` (C, 1, kh, kw), ``bias`` (C,) or
    None. Autograd, empty maps and shape checks are the caller's business.
    """

    name: str
    joint = False  #: whether ``gradients`` is less work than ``grad_input`` and ``grad_weight``
    mixes = False  #: whether the images of a batch share their rounding errors
    keeps = False  #: whether ``forward`` takes a list ``keep``, for what makes ``gradients`` less work as ``kept``

    def can_run(self, problem: ConvProblem) -> Tuple[bool, str]:
        """Whether it runs this device, dtype and shape, and if not, why not."""
        raise NotImplementedError

    def cost(self, step: str, problem: ConvProblem) -> float:
        """Estimated seconds of one pass (one of ``STEPS``), comparable between the backends of a device."""
        raise NotImplementedError

    def forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem) -> Tensor:
        raise NotImplementedError

    def inference(self, x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem,
                  owner: Optional[Tensor] = None) -> Tensor:
        """``forward`` where no gradient is wanted, and the weight, a cast of ``owner`` if there is one, is likely to
        come again."""
        return self.forward(x, weight, bias, problem)

    def grad_input(self, grad: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
        raise NotImplementedError

    def grad_weight(self, grad: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
        raise NotImplementedError

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, problem: ConvProblem) -> Tuple[Tensor, Tensor]:
        """Both gradients."""
        return self.grad_input(grad, weight, problem), self.grad_weight(grad, x, problem)
