"""Heads of mmsegmentation whose results repeat. The toolbox is imported only when a config uses one of them."""
from typing import Any, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from mmlk.registry import MODELS


@MODELS.register_module(name='LightHamHead')
def light_ham_head(**kwargs) -> nn.Module:
    """Builds mmseg's ``LightHamHead``, SegNeXt's decode head, so that a trained model gives the same result every time.

    The head replaces a map by a product of two non-negative factors (the Hamburger of arXiv:2109.04553), which an
    iteration finds from random bases. mmseg draws new bases in every forward pass, so that no two tests of a model give
    the same figures, and an exported file cannot be compared with the model. Here the iteration starts from the same
    bases for every image in eval mode. They are drawn once, with the seed 0, from mmseg's distribution, and are not
    part of the state dict. In training new bases are drawn in every step, as officially.

    Args:
        kwargs: Passed to mmseg's ``LightHamHead``. With ``ham_kwargs=dict(rand_init=False)`` training starts from the
            same bases as well.

    Returns:
        The head.
    """
    from mmseg.models import LightHamHead
    head = LightHamHead(**kwargs)
    ham = head.hamburger.ham
    shape = ham.S, head.ham_channels // ham.S, ham.R
    bases = torch.rand(shape, generator=torch.Generator('cpu').manual_seed(0), device='cpu')
    ham.register_buffer('bases', F.normalize(bases, dim=1).to(head.conv_seg.weight.device), persistent=False)
    if ham.rand_init:
        ham.register_forward_pre_hook(_draw_in_training)
    return head


def _draw_in_training(ham: Any, args: Tuple[Any, ...]) -> None:
    """A forward pre-hook: bases are random in training, and those of the buffer in eval mode."""
    ham.rand_init = ham.training
