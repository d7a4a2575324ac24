"""Heads of mmsegmentation, extended. The toolbox is imported only when a config uses one of them."""
from typing import Any, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
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


@MODELS.register_module(name='LinearHead')
def linear_head(in_channels: Sequence[int], in_index: Sequence[int] = (0, 1, 2, 3), norm_cfg: dict = dict(type='BN'),
                dropout_ratio: float = 0.1, **kwargs) -> nn.Module:
    """Builds a linear decode head, with which frozen features are probed: a norm and a 1x1 convolution.

    The maps are resized to the size of the first one and concatenated. Dropout of whole channels, the norm and the
    convolution follow, in the order of DINOv3's linear head (dinov3/eval/segmentation/models/heads/linear_head.py of
    github.com/facebookresearch/dinov3). In eval mode the result is one affine function of the features of a pixel.

    Args:
        in_channels: Number of channels of each map.
        in_index: Which of the backbone's maps are taken, as many as there are ``in_channels``.
        norm_cfg: Norm layer config. Its layer has as many channels as all maps together.
        dropout_ratio: Fraction of the channels that are dropped in training.
        kwargs: Passed to mmseg's ``FCNHead``, for example ``num_classes``.

    Returns:
        The head, an ``FCNHead`` without convolutions before the last one.

    Raises:
        ValueError: ``in_channels`` and ``in_index`` are not of the same length.
    """
    from mmseg.models import FCNHead
    if len(in_channels) != len(in_index):
        raise ValueError(f'LinearHead: in_channels {tuple(in_channels)} and in_index {tuple(in_index)} must be of the '
                         'same length')
    channels = sum(in_channels)
    head = FCNHead(in_channels=list(in_channels), in_index=list(in_index), input_transform='resize_concat',
                   channels=channels, num_convs=0, kernel_size=1, concat_input=False, dropout_ratio=0, **kwargs)
    head.convs = nn.Sequential(nn.Dropout2d(dropout_ratio), build_norm_layer(norm_cfg, channels)[1])
    return head
