"""The base class of backends, and the description of the convolution that they compute."""
from contextlib import nullcontext
from typing import ContextManager, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

#: The steps for which a backend is chosen.
STEPS = (
    'inference',  # forward pass without gradients; the weight is expected to come again unchanged
    'forward',  # forward pass that is followed by a backward pass
    'grad_input',  # gradient of the input
    'grad_weight',  # gradient of the weight
    'gradients',  # gradients of input and weight in one call
    'training',  # forward pass that saves its intermediate results, plus both gradients, which use them
)


class ConvProblem(NamedTuple):
    """Everything about a depthwise convolution except the values: stride 1, dilation 1, "same" padding.

    Two convolutions with equal problems take the same time, so it is the key of all measurements.
    """

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
        """Returns the problem for an input (N, C, H, W) and a weight (C, 1, kh, kw)."""
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        return cls(x.device, x.dtype, batch, channels, height, width, weight.shape[-2], weight.shape[-1], last)

    @property
    def macs(self) -> int:
        """Number of multiply-adds of a forward pass by the direct method."""
        return self.batch * self.channels * self.height * self.width * self.kh * self.kw

    @property
    def padding(self) -> Tuple[int, int, int, int]:
        """Padding (left, right, top, bottom), as for ``F.pad``. For even kernels, right and bottom are larger by 1."""
        left, top = (self.kw - 1) // 2, (self.kh - 1) // 2
        return left, self.kw - 1 - left, top, self.kh - 1 - top

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of the input, the output and the gradient of the input."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class Reach(NamedTuple):
    """The kernel's taps along one axis that can overlap the map.

    A kernel may be larger than the map. Taps that are further from the centre than the map is long are only ever
    multiplied by padding, so they are left out.

    Attributes:
        extent: Length of the map along the axis.
        before: Number of overlapping taps before the centre.
        after: Number of overlapping taps after the centre.
        centre: Index of the centre tap in the kernel.
    """

    extent: int
    before: int
    after: int
    centre: int

    @classmethod
    def of(cls, problem: ConvProblem) -> Tuple['Reach', 'Reach']:
        """Returns the reach along the height and the reach along the width."""
        rows, columns = (cls(extent, min((k - 1) // 2, extent - 1), min(k // 2, extent - 1), (k - 1) // 2)
                         for extent, k in ((problem.height, problem.kh), (problem.width, problem.kw)))
        return rows, columns

    @property
    def taps(self) -> slice:
        """The overlapping taps, as a slice of the kernel."""
        return slice(self.centre - self.before, self.centre + self.after + 1)

    @property
    def circle(self) -> int:
        """Minimum length of a circular convolution that gives the correct output; see :mod:`.spectral`."""
        return self.extent + max(self.before, self.after)


def channel_chunks(problem: ConvProblem, area: int, elements: int) -> List[slice]:
    """Returns slices that divide the channels into chunks of nearly equal size.

    A chunk has at most ``elements`` elements, if each of its maps has ``area`` of them, and at least one channel. More
    than two chunks are a multiple of 4 where the number of channels allows it, so that two or four threads get equally
    many.
    """
    most = max(1, elements // (max(1, problem.batch) * area))
    count = -(-problem.channels // most)
    count = count if count <= 2 else -(-count // 4) * 4
    size = -(-problem.channels // count)
    return [slice(c, min(c + size, problem.channels)) for c in range(0, problem.channels, size)]


def half_precision_and_up(dtype: torch.dtype) -> Tuple[bool, str]:
    """Returns what :meth:`Backend.can_run` returns, for a backend that runs in every floating-point dtype."""
    ok = dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return ok, '' if ok else f'it runs in float16, bfloat16, float32 and float64, not {dtype}'


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype to compute in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tf32_allowed() -> bool:
    """Returns whether float32 may be rounded to tf32 on a GPU, according to PyTorch's flag for matrix products.

    That flag is off by default. The flag for convolutions is not used: it is on by default, although PyTorch's
    depthwise convolution does not round.
    """
    flags = torch.backends.cuda.matmul
    # fp32_precision exists from torch 2.9
    return flags.fp32_precision == 'tf32' if hasattr(flags, 'fp32_precision') else flags.allow_tf32


def given_dtypes(device: torch.device) -> ContextManager[object]:
    """Returns a context manager that disables autocast on the device."""
    mixed = device.type != 'meta' and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if mixed else nullcontext()


class Backend:
    """One implementation of the convolution and of its two gradients.

    All tensors have the problem's dtype and device. Inputs may have any strides; returned maps have the problem's
    memory format. The caller has checked the shapes, has made sure that no tensor is empty, and takes care of autograd.
    """

    name: str  #: name by which a user selects the backend
    joint = False  #: whether ``gradients`` takes less work than ``grad_input`` and ``grad_weight`` together
    mixes = False  #: whether the values of one image influence the rounding errors of another in the batch
    #: whether ``forward`` takes an additional list ``keep``, to which it appends intermediate results (tensors), and
    #: ``gradients`` takes these as ``kept``, to need less work
    keeps = False

    def can_run(self, problem: ConvProblem) -> Tuple[bool, str]:
        """Returns (True, ''), or (False, reason) if the backend cannot run this device, dtype or shape."""
        raise NotImplementedError

    def cost(self, step: str, problem: ConvProblem) -> float:
        """Returns the estimated seconds of a step, one of ``STEPS``; only used to compare backends on one device."""
        raise NotImplementedError

    def forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem) -> Tensor:
        """Computes the convolution.

        Args:
            x: (N, C, H, W).
            weight: (C, 1, kh, kw).
            bias: (C,) or None.
            problem: The problem of ``x`` and ``weight``.

        Returns:
            (N, C, H, W).
        """
        raise NotImplementedError

    def inference(self, x: Tensor, weight: Tensor, bias: Optional[Tensor], problem: ConvProblem,
                  owner: Optional[Tensor] = None) -> Tensor:
        """Computes the same as :meth:`forward`, in inference: a backend may cache what it derives from the weight.

        Args:
            x: (N, C, H, W).
            weight: (C, 1, kh, kw).
            bias: (C,) or None.
            problem: The problem of ``x`` and ``weight``.
            owner: The parameter of which autocast has made ``weight``, (C, 1, kh, kw) in any dtype; None if ``weight``
                is the parameter itself.

        Returns:
            (N, C, H, W).
        """
        return self.forward(x, weight, bias, problem)

    def grad_input(self, grad: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
        """Computes the gradient of the input.

        Args:
            grad: Gradient of the output, (N, C, H, W).
            weight: (C, 1, kh, kw).
            problem: The problem of the forward pass.

        Returns:
            (N, C, H, W).
        """
        raise NotImplementedError

    def grad_weight(self, grad: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
        """Computes the gradient of the weight.

        Args:
            grad: Gradient of the output, (N, C, H, W).
            x: Input of the forward pass, (N, C, H, W).
            problem: The problem of the forward pass.

        Returns:
            (C, 1, kh, kw).
        """
        raise NotImplementedError

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, problem: ConvProblem) -> Tuple[Tensor, Tensor]:
        """Computes the gradients of input and weight.

        Args:
            grad: Gradient of the output, (N, C, H, W).
            x: Input of the forward pass, (N, C, H, W).
            weight: (C, 1, kh, kw).
            problem: The problem of the forward pass.

        Returns:
            The gradient of the input, (N, C, H, W), and the gradient of the weight, (C, 1, kh, kw).
        """
        return self.grad_input(grad, weight, problem), self.grad_weight(grad, x, problem)
