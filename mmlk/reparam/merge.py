"""One verb: from parallel branches to one convolution."""
import copy
from functools import partial

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .algebra import foldable
from .branches import MergeableBranches


def refresh(module: nn.Module) -> None:
    """Compute the weights that hooks of ``torch.nn.utils`` (weight and spectral normalization, pruning) make of others
    before each forward pass, in place: after an optimizer's step or after loading they are those of the pass before.
    """
    for child in module.modules():
        for hook in child._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                name, source, compute = hook.name, f'{hook.name}_g', hook.compute_weight
            elif isinstance(hook, SpectralNorm):
                name, source = hook.name, f'{hook.name}_orig'
                compute = partial(hook.compute_weight, do_power_iteration=False)
            elif isinstance(hook, BasePruningMethod):
                name, source, compute = hook._tensor_name, f'{hook._tensor_name}_orig', hook.apply_mask
            else:
                continue
            with torch.no_grad():
                weight = compute(child)
            # a leaf, which can be copied, and frozen where what it is made of is
            setattr(child, name, weight.detach().requires_grad_(getattr(child, source).requires_grad))


def merge(module: nn.Module, inplace: bool = False, dense: bool = False) -> nn.Module:
    """Fold every block of parallel branches, BatchNorm included, into one convolution.

    The decomposed kernels of SLaK fold into two, a tall and a wide stripe, and into one when ``dense``. Merging twice
    is merging once. What is folded are the weights as they are now, where something computes them too:
    ``torch.nn.utils.parametrize``, weight and spectral normalization, pruning. The state dict of the result loads into
    a model built with ``merged=True``, that of a dense SLaK into one with ``Decom=False`` in its arch as well.

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
    refresh(module)
    module = module if inplace else copy.deepcopy(module)
    module.eval()  # spectral normalization goes on with its iteration in training
    for block in list(module.modules()):
        if isinstance(block, MergeableBranches):
            if not block.merged:
                block.merge_branches()
            if dense:
                block.densify()
    return module.eval()  # the new convolutions too
