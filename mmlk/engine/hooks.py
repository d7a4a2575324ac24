"""Hooks of mmengine's runner."""
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

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
