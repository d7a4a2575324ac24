"""Converts the arguments of mmcv's compiled operators to tensors that they support.

The operators of ``mmcv._ext`` read every tensor as if it were contiguous. For a channels_last, transposed or expanded
tensor their result is wrong, without an error; only ``deform_conv2d`` raises one. On CPUs they only support float32 and
float64, and they support bfloat16 nowhere. mmcv calls them through the attributes of this one module, so each function
in it is replaced with one that converts its arguments first.
"""
from functools import wraps
from types import ModuleType
from typing import Any, Callable, List, Tuple

from mmlk._after_import import after_import


def _readable(tensor: Any) -> Any:
    """Returns the tensor if the operators support it, otherwise a contiguous copy in a dtype that they support."""
    import torch
    no_kernel = (torch.bfloat16, ) if tensor.is_cuda else (torch.bfloat16, torch.float16)
    if tensor.dtype in no_kernel:
        tensor = tensor.float()
    return tensor.contiguous()


def _same_bits(a: Any, b: Any) -> bool:
    """Returns whether two contiguous tensors have the same bits. Unlike with ``==``, equal NaNs are equal."""
    import torch
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def guarded(function: Callable) -> Callable:
    """Returns a function that calls ``function`` with contiguous tensors of a supported dtype.

    The operators write their results to arguments. If an argument was copied and the copy has been changed, it is
    copied back to the caller's tensor. Tensors that are only read are not changed, nor is their version counter.
    """
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        import torch
        copies: List[Tuple[Any, Any]] = []  # (the caller's tensor, its copy)

        def convert(value: Any) -> Any:
            if isinstance(value, (list, tuple)) and any(isinstance(part, torch.Tensor) for part in value):
                return type(value)(map(convert, value))
            if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
                return value
            readable = _readable(value)
            if readable is not value:
                copies.append((value, readable))
            return readable

        result = function(*map(convert, args), **{key: convert(value) for key, value in kwargs.items()})
        with torch.no_grad():
            for value, copy in copies:
                if not _same_bits(copy, _readable(value)):
                    value.copy_(copy)
        return result

    return wrapper


def _guard(extension: ModuleType) -> None:
    for name, function in list(vars(extension).items()):
        if callable(function) and not name.startswith('_') and not hasattr(function, '__wrapped__'):
            setattr(extension, name, guarded(function))


def guard() -> None:
    """Applies :func:`guarded` to mmcv's compiled operators in this process, now or when they are imported.

    Nothing is imported here. It has no effect if mmcv has no compiled operators.
    """
    after_import('mmcv._ext', _guard)
