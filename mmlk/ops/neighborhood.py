"""Weighted sums over the neighbourhood of each pixel, with different weights for each pixel and head.

The weights are those of neighbourhood attention (Hassani et al., CVPR 2023, arXiv:2204.07143), or are predicted from
the map, as in the dynamic convolutions of OverLoCK (Lou and Yu, CVPR 2025, arXiv:2502.20087). The neighbourhood of a
pixel is a k x k window. Where it would reach over the border of the map, it is moved inside, so that every pixel has k
* k neighbours and none of them is padding. This is ``na2d_av`` of the library NATTEN 0.17, with dilation 1 and no
causal mask.
"""
import warnings
from typing import Any, Callable, Optional, Set, Tuple

import torch
from torch import Tensor

from ._private import is_legacy_batched
from .backends.base import given_dtypes, half_precision_and_up
from .backends.neighborhood import TABLE, NeighborhoodBackend, gather
from .depthwise import _transformed
from .layout import exporting, keeps_operators, symbolic

_banded, _gather, _triton = TABLE
_checked: Set[Tuple[torch.device, torch.dtype]] = set()
_failed: Set[torch.device] = set()  # where the Triton kernels are not used again


def _check(attn: Tensor, value: Tensor, kernel_size: int) -> None:
    """Raises a ValueError if shapes or devices do not match, or the map is smaller than the window."""
    if not isinstance(kernel_size, int) or isinstance(kernel_size, bool) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f'neighborhood_av: kernel_size must be an odd positive integer, got {kernel_size!r}')
    if attn.dim() != 5 or value.dim() != 5 or not symbolic(*attn.shape, *value.shape) and (
            tuple(attn.shape) != (*value.shape[:4], kernel_size**2)):
        raise ValueError(f'neighborhood_av takes attn (B, g, H, W, {kernel_size**2}) and value (B, g, H, W, C), got '
                         f'{tuple(attn.shape)} and {tuple(value.shape)}')
    height, width = value.shape[2:4]
    if not symbolic(height, width) and min(height, width) < kernel_size:
        raise ValueError(f'neighborhood_av: a map of {height}x{width} is smaller than the window of '
                         f'{kernel_size}x{kernel_size}')
    ok, reason = half_precision_and_up(value.dtype)
    if not ok:
        raise ValueError(f'neighborhood_av: {reason}')
    if attn.device != value.device:
        raise ValueError(f'attn and value must be on one device, got {attn.device} and {value.device}')


def _get(name: str, value: Tensor) -> NeighborhoodBackend:
    """Returns the backend with the given name; raises a ValueError if there is none or it cannot run."""
    for backend in TABLE:
        if backend.name == name:
            ok, reason = backend.can_run(value)
            if not ok:
                raise ValueError(f"neighborhood_av: backend '{name}' cannot run here: {reason}")
            return backend
    raise ValueError(f"neighborhood_av: no backend '{name}'; there are {', '.join(b.name for b in TABLE)}")


def _run(call: Callable[[NeighborhoodBackend], Tensor], name: Optional[str], value: Tensor) -> Tensor:
    """Returns ``call(backend)`` for the backend with the name; if that is None, for the one that is chosen.

    It is ``banded`` on a CPU. On a GPU it is ``triton`` where it runs and has passed a check on a small problem, and
    ``gather`` otherwise, as on all other devices.
    """
    with given_dtypes(value.device):
        if name:
            return call(_get(name, value))
        if value.device.type == 'cpu':
            return call(_banded)
        if value.device not in _failed and _triton.can_run(value)[0]:
            try:
                _prove(value.device, value.dtype)
                return call(_triton)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:  # a compiler or a driver raises anything
                _failed.add(value.device)
                text = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(f'neighborhood_av does not use Triton on {value.device} again in this process, for it '
                              f'failed: {type(error).__name__}: {text}', RuntimeWarning, stacklevel=2)
        return call(_gather)


def _prove(device: torch.device, dtype: torch.dtype) -> None:
    """Compares the Triton kernels with ``gather`` on a small problem, once for each device and dtype.

    Raises:
        RuntimeError: They differ by more than rounding.
    """
    if (device, dtype) in _checked:
        return
    shapes = (2, 2, 9, 7, 25), (2, 2, 9, 7, 20), (2, 2, 9, 7, 20)
    attn, value, grad = (torch.arange(torch.Size(shape).numel(), device=device, dtype=torch.float64).mul(1.7 + i).sin()
                         .reshape(shape).to(dtype) for i, shape in enumerate(shapes))
    for name, inputs in ('forward', (attn, value)), ('grad_attn', (grad, value)), ('grad_value', (grad, attn)):
        ours, theirs = (getattr(backend, name)(*inputs, 5).double() for backend in (_triton, _gather))
        if not (ours - theirs).norm() <= 2e-2 * theirs.norm():
            raise RuntimeError(f'the result of {name} on a small problem in {dtype} is wrong')
    _checked.add((device, dtype))


# Eager and compiled code run the same two custom operators, which the compiler does not trace into.
@torch.library.custom_op('mmlk::neighborhood_av', mutates_args=())
def _operator(attn: Tensor, value: Tensor, kernel_size: int, backend: Optional[str]) -> Tensor:
    return _run(lambda method: method.forward(attn, value, kernel_size), backend, value)


@_operator.register_fake
def _(attn: Tensor, value: Tensor, kernel_size: int, backend: Optional[str]) -> Tensor:
    return torch.empty_like(value, memory_format=torch.contiguous_format)


@torch.library.custom_op('mmlk::neighborhood_av_backward', mutates_args=())
def _backward_operator(grad: Tensor, attn: Tensor, value: Tensor, kernel_size: int, backend: Optional[str],
                       for_attn: bool, for_value: bool) -> Tuple[Tensor, Tensor]:
    def of(needed: bool, call: Callable[[NeighborhoodBackend], Tensor]) -> Tensor:
        return _run(call, backend, value) if needed else value.new_empty(0)

    return (of(for_attn, lambda method: method.grad_attn(grad, value, kernel_size)),
            of(for_value, lambda method: method.grad_value(grad, attn, kernel_size)))


@_backward_operator.register_fake
def _(grad: Tensor, attn: Tensor, value: Tensor, kernel_size: int, backend: Optional[str], for_attn: bool,
      for_value: bool) -> Tuple[Tensor, Tensor]:
    return (torch.empty_like(attn, memory_format=torch.contiguous_format) if for_attn else value.new_empty(0),
            torch.empty_like(value, memory_format=torch.contiguous_format) if for_value else value.new_empty(0))


def _setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Any) -> None:
    attn, value, ctx.kernel_size, ctx.backend = inputs
    ctx.save_for_backward(attn, value)


def _backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    attn, value = ctx.saved_tensors
    for_attn, for_value, *_ = ctx.needs_input_grad
    if not torch.compiler.is_compiling() and (_transformed(grad) or is_legacy_batched(grad)):  # a batch of gradients
        with torch.enable_grad():
            leaves = attn.detach().requires_grad_(), value.detach().requires_grad_()
            grads = torch.autograd.grad(gather(*leaves, ctx.kernel_size), leaves, grad)
        return (*grads, None, None)
    grad_attn, grad_value = _backward_operator(grad, attn, value, ctx.kernel_size, ctx.backend, for_attn, for_value)
    return grad_attn if for_attn else None, grad_value if for_value else None, None, None


_operator.register_autograd(_backward, setup_context=_setup_context)


def _setup_backward_context(ctx: Any, inputs: Tuple[Any, ...], output: Any) -> None:
    grad, attn, value, ctx.kernel_size, ctx.backend, *ctx.taken = inputs
    ctx.save_for_backward(grad, attn, value)


def _second_backward(ctx: Any, for_attn: Optional[Tensor], for_value: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
    """Computes the gradients of the two gradients. The output is linear in each of attn and value, and so each of the
    derivatives is again an output or a gradient."""
    grad, attn, value = ctx.saved_tensors
    u, v = (t if taken else None for t, taken in zip((for_attn, for_value), ctx.taken))
    of_grad, of_attn, of_value, *_ = ctx.needs_input_grad
    more = ctx.kernel_size, ctx.backend
    terms = [_operator(*pair, *more) for pair in ((u, value), (attn, v)) if pair[0] is not None and pair[1] is not None]
    return (sum(terms[1:], terms[0]) if of_grad and terms else None,
            None if v is None or not of_attn else _backward_operator(grad, attn, v, *more, True, False)[0],
            None if u is None or not of_value else _backward_operator(grad, u, value, *more, False, True)[1],
            None, None, None, None)


_backward_operator.register_autograd(_second_backward, setup_context=_setup_backward_context)


def neighborhood_av(attn: Tensor, value: Tensor, kernel_size: int, *, backend: Optional[str] = None) -> Tensor:
    """Sums the values in the k x k neighbourhood of each pixel, weighted by ``attn``.

    ``out[b, g, i, j] = sum over p, q of attn[b, g, i, j, p * k + q] * value[b, g, s(i) + p, t(j) + q]``. The window
    starts at ``s(i) = min(max(i - k // 2, 0), H - k)``, and ``t`` is the same for columns: at the borders it is moved
    inside the map.

    The memory beyond inputs and result is bounded on a CPU: two copies of the values of one head, in float32 or
    float64, and 4 MiB, or what the weights of one row of the map take with zeros between them. On a GPU the Triton
    kernels take none. ``gather`` takes ``kernel_size`` times the memory of ``value``.

    Args:
        attn: Weights, (B, g, H, W, k * k), with the taps of a window row by row. Another dtype than that of ``value``
            is converted to it.
        value: (B, g, H, W, C), with any number of heads g.
        kernel_size: k, odd, and at most H and W.
        backend: ``'banded'`` (products of banded matrices), ``'gather'`` (copies of windows) or ``'triton'``. None
            takes the first on a CPU, the last on a GPU where it can run, and ``'gather'`` elsewhere. Exported graphs
            (``torch.export``, ONNX, TorchScript) and ``torch.func`` transforms always have the form of ``'gather'``,
            which is made of standard operators.

    Returns:
        (B, g, H, W, C) in the dtype of ``value``. Half precision is rounded at input and output, and summed in float32.

    Raises:
        ValueError: Shapes or devices do not match, the map is smaller than the window, the dtype is not a
            floating-point number of 16 bits or more, or the backend cannot run; the message gives the reason.
    """
    _check(attn, value, kernel_size)
    if backend is not None:
        _get(backend, value)
    attn = attn.to(value.dtype)
    plain = value.device.type == 'meta' or exporting() and not keeps_operators()
    if not plain and not torch.compiler.is_compiling() and not symbolic(*value.shape):
        plain = _transformed(attn, value)
    if plain:
        return gather(attn, value, kernel_size)
    if not symbolic(*value.shape) and not value.numel():
        return value * attn.sum()  # a batch of no images, or no channels; gradients are zeros
    return _operator(attn, value, kernel_size, backend)
