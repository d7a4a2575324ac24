"""Mixed precision in bfloat16, on a CPU too, where mmengine's AmpOptimWrapper does not run."""
from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import nn

from mmlk.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Trains with bfloat16 autocast, on a CPU or a GPU. ``tools/train.py --amp`` uses it on a CPU.

    bfloat16 has the range of float32, so the loss needs no scaling, and checkpoints hold no additional state. Boxes of
    mmdet's detectors are computed in float32, see ``mmlk/_mmdet.py``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        """A context manager for the forward pass: autocast, in the context that accumulated gradients need."""
        with super().optim_context(model), torch.autocast(get_device(), torch.bfloat16):
            yield
