"""Sets the memory format in which a network runs fastest: of its input, which the convolutions keep from there on."""
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Iterator, Optional, Tuple

import torch
from torch import Tensor, nn

from ._private import in_export

MEMORY_FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


def fastest_memory_format(x: Tensor) -> torch.memory_format:
    """Returns the memory format in which a network with the input ``x``, (N, C, H, W), is expected to be fastest.

    On a CPU that is channels_last in inference, in which RepLKNet-31B takes 0.90 of the time. With gradients it is
    contiguous: the backward passes of BatchNorm and GELU are slow in channels_last (1.26 of the time). On a GPU it is
    channels_last for half precision and contiguous for float32, as cuDNN's kernels are written.
    """
    if x.device.type == 'cpu':
        return torch.contiguous_format if torch.is_grad_enabled() else torch.channels_last
    half = x.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(x.device.type)
    return torch.channels_last if half and x.device.type == 'cuda' else torch.contiguous_format


class _InputFormat:
    """A forward pre-hook that converts the first argument to a memory format; None for the fastest one."""

    def __init__(self, memory_format: Optional[torch.memory_format]):
        self.memory_format = memory_format

    def __call__(self, module: nn.Module, args: Tuple[Any, ...]) -> Tuple[Any, ...]:
        x = args[0] if args else None  # an input that is passed by keyword is not converted
        if not isinstance(x, Tensor) or x.dim() != 4 or x.device.type == 'meta' or exporting():
            return args
        return x.contiguous(memory_format=self.memory_format or fastest_memory_format(x)), *args[1:]


class _OutputFormat:
    """A forward hook that converts the maps (N, C, H, W) in the output, also inside tuples, lists and dicts."""

    def __init__(self, memory_format: torch.memory_format):
        self.memory_format = memory_format

    def __call__(self, module: nn.Module, args: Tuple[Any, ...], output: Any) -> Any:
        return output if exporting() else self._laid_out(output)

    def _laid_out(self, output: Any) -> Any:
        """Returns the output with all maps converted."""
        if isinstance(output, Tensor):
            if output.dim() != 4 or output.device.type == 'meta':
                return output
            return output.contiguous(memory_format=self.memory_format)
        if type(output) in (tuple, list):
            return type(output)(map(self._laid_out, output))
        if type(output) is dict:
            return {key: self._laid_out(value) for key, value in output.items()}
        return output


def set_memory_format(module: nn.Module, memory_format: str = 'fastest', output_format: str = 'contiguous') -> None:
    """Sets the memory format in which a module computes, independent of that of its input. A second call replaces it.

    The conversions are done by forward hooks. By default the outputs are contiguous, because some operators ignore the
    strides of their inputs and read them as contiguous, among them the compiled RoIAlign of mmcv.

    Args:
        module: A module, for example a backbone. Its first argument must be a map, (N, C, H, W).
        memory_format: ``'contiguous'``, ``'channels_last'``, or ``'fastest'`` for :func:`fastest_memory_format`.
        output_format: Memory format of the returned maps, ``'contiguous'`` or ``'channels_last'``.

    Raises:
        ValueError: There is no such memory format.
    """
    if memory_format not in (*MEMORY_FORMATS, 'fastest'):
        raise ValueError(f"memory_format must be one of {', '.join(MEMORY_FORMATS)} or fastest, got '{memory_format}'")
    if output_format not in MEMORY_FORMATS:
        raise ValueError(f"output_format must be one of {', '.join(MEMORY_FORMATS)}, got '{output_format}'")
    before, after = _InputFormat(MEMORY_FORMATS.get(memory_format)), _OutputFormat(MEMORY_FORMATS[output_format])
    for hooks, register, hook in ((module._forward_pre_hooks, module.register_forward_pre_hook, before),
                                  (module._forward_hooks, module.register_forward_hook, after)):
        known = next((other for other in hooks.values() if type(other) is type(hook)), None)
        if known is None:
            register(hook)
        else:
            known.memory_format = hook.memory_format


def symbolic(*sizes: object) -> bool:
    """Returns whether one of the sizes is symbolic, that is, a value of a graph that is being exported.

    The graph must be valid for other sizes too, so no decision may depend on it.
    """
    return any(type(size) is not int for size in sizes)


def exporting() -> bool:
    """Returns whether a graph is being exported (``torch.export``, ONNX, TorchScript).

    An exported graph has plain convolutions and no conversions of the memory format.
    """
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return True
    return torch.compiler.is_compiling() and in_export()


_keeping: ContextVar[bool] = ContextVar('mmlk_keep_operators', default=False)


@contextmanager
def keep_operators() -> Iterator[None]:
    """A context manager in which an exported graph has :func:`mmlk.ops.neighborhood_av` as one operator.

    Such a graph runs in Python only. Convolutions stay PyTorch's own.
    """
    token = _keeping.set(True)
    try:
        yield
    finally:
        _keeping.reset(token)


def keeps_operators() -> bool:
    """Returns whether the calling thread is in :func:`keep_operators`."""
    return _keeping.get()
