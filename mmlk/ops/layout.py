"""The memory format in which a convolutional network runs fastest, set at its input: from there it spreads."""
from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn

MEMORY_FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


def fastest_memory_format(x: Tensor) -> torch.memory_format:
    """The memory format for a map that a network is about to take.

    On a CPU, channels_last for inference, where RepLKNet-31B takes 0.90 of the time, and contiguous where gradients are
    recorded, for BatchNorm's and GELU's backward passes are slow in channels_last (1.26 of the time). On a GPU, cuDNN's
    half-precision kernels are written for channels_last, its float32 ones for contiguous maps.
    """
    if x.device.type == 'cpu':
        return torch.contiguous_format if torch.is_grad_enabled() else torch.channels_last
    half = x.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(x.device.type)
    return torch.channels_last if half and x.device.type == 'cuda' else torch.contiguous_format


class _InputFormat:
    """Forward pre-hook that lays the first input out anew."""

    def __init__(self, memory_format: Optional[torch.memory_format]):
        self.memory_format = memory_format

    def __call__(self, module: nn.Module, args: Tuple[Any, ...]) -> Tuple[Any, ...]:
        x = args[0] if args else None  # one that is given by keyword is left as it is
        if not isinstance(x, Tensor) or x.dim() != 4 or x.device.type == 'meta' or exporting():
            return args
        return x.contiguous(memory_format=self.memory_format or fastest_memory_format(x)), *args[1:]


class _OutputFormat:
    """Forward hook that lays out the maps among the outputs anew: a tensor, or tuples, lists and dicts of them."""

    def __init__(self, memory_format: torch.memory_format):
        self.memory_format = memory_format

    def __call__(self, module: nn.Module, args: Tuple[Any, ...], output: Any) -> Any:
        return output if exporting() else self._laid_out(output)

    def _laid_out(self, output: Any) -> Any:
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
    """Set the memory format in which a module computes, whatever its caller passes in. The last call holds.

    Outputs are contiguous unless the caller asks for something else, because what consumes them may read memory as
    contiguous whatever the strides say: the compiled operators of mmcv do, RoIAlign among them.

    Args:
        module: A backbone, for example. Its first argument, a map (N, C, H, W), is converted before each forward.
        memory_format: ``'contiguous'``, ``'channels_last'``, or ``'fastest'`` for :func:`fastest_memory_format`.
        output_format: Memory format of the maps that the module returns: ``'contiguous'`` or ``'channels_last'``.

    Raises:
        ValueError: Another memory format.
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
    """Whether one of these sizes of a map is not a number but a value of a graph being written, which holds for maps of
    other sizes too: nothing may be decided by it."""
    return any(type(size) is not int for size in sizes)


def exporting() -> bool:
    """Whether a graph for elsewhere is being written, which holds plain convolutions in no particular layout.

    Before torch 2.7 a strict ``torch.export`` cannot be told from ``torch.compile``; a non-strict one can.
    """
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return True
    if not torch.compiler.is_compiling():
        return False
    if hasattr(torch.compiler, 'is_exporting'):
        return torch.compiler.is_exporting()
    return not torch.compiler.is_dynamo_compiling()
