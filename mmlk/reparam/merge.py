"""One verb: from parallel branches to one convolution."""
import copy

from torch import nn

from .algebra import foldable
from .branches import MergeableBranches


def merge(module: nn.Module, inplace: bool = False, dense: bool = False) -> nn.Module:
    """Fold every block of parallel branches, BatchNorm included, into one convolution.

    The decomposed kernels of SLaK fold into two, a tall and a wide stripe, and into one when ``dense``. Merging twice
    is merging once. The state dict of the result loads into a model built with ``merged=True``, that of a dense SLaK
    into one with ``Decom=False`` in its arch as well.

    Args:
        module: A backbone, or a whole detector or segmentor that holds one; merged already or not.
        inplace: Change ``module`` itself instead of a copy.
        dense: Make one K x K kernel of the stripes K x k and k x K, at K / 2k times their multiply-adds.

    Returns:
        The merged module, in eval mode whatever mode it came in.

    Raises:
        ValueError: A branch has a norm that is not a fixed affine map in eval mode (GroupNorm, a BatchNorm without
            running statistics). Nothing has been changed then.
    """
    for name, block in module.named_modules():
        if isinstance(block, MergeableBranches):
            for norm in block.norms():
                if not foldable(norm):
                    raise ValueError(
                        f"cannot merge '{name}': {type(norm).__name__} is not a fixed affine map in eval mode. "
                        "Merging needs BatchNorm with running statistics: norm_cfg=dict(type='BN') or 'SyncBN'")
    if not inplace:
        module = copy.deepcopy(module)
    for block in list(module.modules()):
        if isinstance(block, MergeableBranches):
            if not block.merged:
                block.merge_branches()
            if dense:
                block.densify()
    return module.eval()
