"""The hook with which ``tools/test.py --optimize`` tests a model in inference form."""
from typing import Any, Optional

import torch
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmlk.engine.hooks import MergeBranchesHook
from mmlk.engine.network import network_of
from mmlk.registry import HOOKS

from .optimizing import optimize

DTYPES = dict(fp32=None, bf16=torch.bfloat16)


@HOOKS.register_module()
class OptimizeHook(MergeBranchesHook):
    """Replaces the model by its inference form before the first batch of a test (``tools/test.py --optimize``).

    The first image is the example of :func:`mmlk.deploy.optimize`. Of a segmentor that is tested in sliding windows, it
    is the first window.

    Args:
        dtype: ``'fp32'`` or ``'bf16'``.

    Raises:
        ValueError: There is no such dtype, or as :func:`mmlk.deploy.optimize` raises.
    """

    def __init__(self, dtype: str = 'fp32'):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.dtype = DTYPES[dtype]

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx:
            return
        network = network_of(runner.model)
        inputs = network.data_preprocessor(data_batch, False)['inputs'][:1]
        height, width = _window(network) or inputs.shape[2:]
        fast = optimize(network, inputs[:, :, :height, :width], self.dtype)
        owner, name = runner, 'model'
        while getattr(owner, name) is not network:
            owner, name = getattr(owner, name), 'module'
        setattr(owner, name, fast)
        print_log(f'testing the model in inference form: {fast.optimization}', logger='current')


def _window(network: torch.nn.Module) -> Optional[Any]:
    """Returns the height and width of the windows in which a segmentor is tested; None for whole images."""
    settings = getattr(network, 'test_cfg', None) or {}
    return settings.get('crop_size') if settings.get('mode') == 'slide' else None
