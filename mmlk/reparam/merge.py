"""Merges the parallel branches of a network."""
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
    """Updates weights that ``torch.nn.utils`` computes from other parameters before each forward pass, in-place.

    Weight normalization, spectral normalization and pruning do so by hooks. After an optimizer step, or after loading a
    state dict, such a weight is stale until the next forward pass.
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
            # a leaf tensor, because deepcopy refuses others; it requires gradients if its source does
            setattr(child, name, weight.detach().requires_grad_(getattr(child, source).requires_grad))


def merge(module: nn.Module, inplace: bool = False, dense: bool = False) -> nn.Module:
    """Replaces every block of parallel branches, including their BatchNorm layers, with one convolution.

    The output of the network in eval mode is unchanged up to rounding. A block that is merged already stays as it is.
    The decomposed kernels of SLaK become two convolutions, a K x k and a k x K one, or a single K x K one if ``dense``.
    Weights that are computed from others (``torch.nn.utils.parametrize``, weight and spectral normalization, pruning)
    are computed first. The state dict of the result loads into a model built with ``merged=True``; that of a dense SLaK
    needs ``Decom=False`` in its arch too.

    Args:
        module: A backbone, or a detector or segmentor that contains one.
        inplace: If True, changes ``module`` itself; otherwise a copy.
        dense: If True, makes one K x K kernel of the K x k and k x K kernels of SLaK, at K / 2k times their
            multiply-adds.

    Returns:
        The merged module, in eval mode.

    Raises:
        ValueError: A norm cannot be folded, for example GroupNorm, or BatchNorm without running statistics. The module
            has not been changed.
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
    module.eval()  # in training mode, spectral normalization would do another power iteration
    for block in list(module.modules()):
        if isinstance(block, MergeableBranches):
            if not block.merged:
                block.merge_branches()
            if dense:
                block.densify()
    module.eval()  # for the new convolutions; a separate call, because eval() of mmdet's ResNet returns None
    return module
