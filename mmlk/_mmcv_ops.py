"""mmcv's compiled operators, given tensors that they can read.

The operators of ``mmcv._ext`` take the address of a tensor and read from there as if the tensor were contiguous: of a
channels_last, transposed or expanded one they make wrong results without an error (``deform_conv2d`` alone refuses
it). On a CPU they are compiled for float32 and float64, and nowhere for bfloat16. All calls of mmcv go through the
attributes of that one module, so each function there is replaced by one that converts its arguments first.
"""
from functools import wraps
from types import ModuleType
from typing import Any, Callable, List, Tuple

from mmlk._after_import import after_import


def _readable(tensor: Any) -> Any:
    """The tensor itself if mmcv's operators read it correctly, else a contiguous copy in a dtype that they have."""
    import torch
    no_kernel = (torch.bfloat16, ) if tensor.is_cuda else (torch.bfloat16, torch.float16)
    if tensor.dtype in no_kernel:
        tensor = tensor.float()
    return tensor.contiguous()


def _same_bits(a: Any, b: Any) -> bool:
    """Whether two contiguous tensors hold the same bits; unlike ``==`` this is true of NaN."""
    import torch
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def guarded(function: Callable) -> Callable:
    """``function`` of an extension, with every tensor among its arguments contiguous and of a dtype that it supports.

    Results are written into arguments. So what the function changed in a copy is written back into the caller's
    tensor; a tensor that it only reads is left alone, version counter included.
    """
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        import torch
        copies: List[Tuple[Any, Any]] = []  # (the caller's tensor, what the function gets)

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
    """Guard mmcv's compiled operators in this process, whether they are imported already or later.

    Nothing is imported here, and nothing happens where mmcv has no compiled operators.
    """
    after_import('mmcv._ext', _guard)
