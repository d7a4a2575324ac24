"""Mixed precision where mmengine's AmpOptimWrapper does not go."""
from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import nn

from mmlk.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Train under bfloat16 autocast on a CPU or a GPU; what ``tools/train.py --amp`` takes on a CPU.

    bfloat16 has float32's range, so no loss is scaled, and there is no state that a checkpoint would hold. Boxes of
    mmdet's detectors stay in float32, see ``mmlk/_mmdet.py``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Autocast around the forward pass, beside what accumulated gradients need."""
        with super().optim_context(model), torch.autocast(get_device(), torch.bfloat16):
            yield
