"""The weight initializer ``init_cfg=dict(type='mmlk.Pretrained', checkpoint=...)``."""
from typing import Any

from mmengine.model import update_init_info
from torch import nn

from mmlk._types import scoped_name
from mmlk.registry import WEIGHT_INITIALIZERS

from .errors import WeightsError
from .loading import load


def _is_ours(init_cfg: Any) -> bool:
    return scoped_name(init_cfg) == 'mmlk.Pretrained'


@WEIGHT_INITIALIZERS.register_module()
class Pretrained:
    """mmengine's ``Pretrained`` that loads with :func:`mmlk.weights.load`: unfilled parameters are an error.

    Args:
        checkpoint: A path, an http(s) URL, a name of the catalogue, ``hf-hub:owner/name[@revision]/file``, or
            ``package:NAME``, an installed Python package with a file of weights.
        strict: If True, raises an error if a parameter or a buffer is not filled; if False, logs a warning.
        allow_pickle: See :func:`mmlk.weights.read.read_weights`.
        adapt_stem: If True, computes stem kernels for another number of input channels from those for RGB; see
            :func:`mmlk.weights.load`.

    Raises:
        WeightsError: When called: :func:`mmlk.weights.load` raises it, or an initializer that is listed after this one
            would overwrite the loaded weights.
    """

    def __init__(self, checkpoint: str, strict: bool = True, allow_pickle: bool = False, adapt_stem: bool = False):
        self.checkpoint = checkpoint
        self.strict = strict
        self.allow_pickle = allow_pickle
        self.adapt_stem = adapt_stem

    def __call__(self, module: nn.Module) -> None:
        # mmengine runs the initializers of the list in their order, and the children's init_weights after them; only
        # its own 'Pretrained' runs last of all. Anything that runs after this initializer would overwrite the loaded
        # weights. Therefore it must be the last of its list, and it initializes the children before it loads.
        init_cfg = getattr(module, 'init_cfg', None)
        if isinstance(init_cfg, list) and any(map(_is_ours, init_cfg)) and not _is_ours(init_cfg[-1]):
            raise WeightsError(f"init_cfg of {type(module).__name__}: put mmlk.Pretrained last, or "
                               f"{init_cfg[-1].get('type')} overwrites what it loads")
        in_init_weights = hasattr(module, '_params_init_info')
        for child in module.children() if in_init_weights else ():
            if hasattr(child, 'init_weights') and not getattr(child, 'is_init', False):
                child.init_weights()
                child.is_init = True
        load(module, self.checkpoint, self.strict, self.allow_pickle, self.adapt_stem)
        if in_init_weights:
            update_init_info(module, init_info=self._get_init_info())

    def _get_init_info(self) -> str:
        return f'{type(self).__name__}: load from {self.checkpoint}'
