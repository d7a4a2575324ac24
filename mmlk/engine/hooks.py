"""Hooks of mmengine's runner."""
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mmlk.ops import set_memory_format
from mmlk.registry import HOOKS
from mmlk.reparam import merge


@HOOKS.register_module()
class MergeBranchesHook(Hook):
    """Merge the model's parallel branches once its checkpoint is loaded, before testing; ``tools/test.py --merge``."""

    priority = 'VERY_HIGH'

    def before_test(self, runner: Runner) -> None:
        """Merge in place."""
        merge(runner.model, inplace=True)
        print_log('parallel branches merged; testing the merged model', logger='current')


@HOOKS.register_module()
class MemoryFormatHook(Hook):
    """Run the model's backbone in a memory format; for stock ones, as mmlk's own take the fastest by themselves.

    Args:
        memory_format: ``'fastest'`` (on the device, for training or inference), ``'channels_last'``, ``'contiguous'``.

    Raises:
        ValueError: Another memory format, or a model without a backbone.
    """

    def __init__(self, memory_format: str = 'fastest'):
        set_memory_format(nn.Identity(), memory_format)  # refuses an unknown one before anything is built
        self.memory_format = memory_format

    def before_run(self, runner: Runner) -> None:
        """Set it on ``model.backbone``."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(getattr(model, 'backbone', None), nn.Module):
            raise ValueError('MemoryFormatHook sets the memory format of model.backbone; '
                             f'{type(model).__name__} has none')
        set_memory_format(model.backbone, self.memory_format)
