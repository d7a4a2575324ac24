"""Mixed precision where mmengine's AmpOptimWrapper does not go."""
from contextlib import contextmanager
from functools import wraps
from typing import Callable

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mmlk.registry import OPTIM_WRAPPERS


def _in_float32(forward: Callable) -> Callable:
    """What takes bfloat16 tensors as float32 ones, and gives bfloat16 back."""
    @wraps(forward)
    def wrapped(*args, **kwargs):
        halves = [isinstance(arg, Tensor) and arg.dtype == torch.bfloat16 for arg in args]
        out = forward(*[arg.float() if half else arg for arg, half in zip(args, halves)], **kwargs)
        return out.bfloat16() if any(halves) and out.is_floating_point() else out
    return wrapped


def _teach_mmcv() -> None:
    """Let those of mmcv's compiled operators that detectors need take bfloat16, which none of them is compiled for."""
    from mmcv.ops.nms import NMSop
    from mmcv.ops.roi_align import RoIAlign
    if not hasattr(RoIAlign.forward, '__wrapped__'):
        RoIAlign.forward = _in_float32(RoIAlign.forward)
        NMSop.forward = staticmethod(_in_float32(NMSop.forward))


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Train under bfloat16 autocast on a CPU or a GPU; what ``tools/train.py --amp`` takes on a CPU.

    bfloat16 has float32's range, so no loss is scaled, and there is no state that a checkpoint would hold. mmcv's
    RoIAlign and suppression of boxes work in float32.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _teach_mmcv()

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Autocast around the forward pass, beside what accumulated gradients need."""
        with super().optim_context(model), torch.autocast(get_device(), torch.bfloat16):
            yield
