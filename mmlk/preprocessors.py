"""The toolboxes' data preprocessors for images of any number of channels.

Those of mmsegmentation and mmdetection take a mean of one value or of three. These are the same otherwise, and they are
built where a config names them, so that no toolbox is imported before.
"""
from typing import Optional, Sequence

import torch
from torch import nn

from mmlk.registry import MODELS


@MODELS.register_module(name='SegDataPreProcessor')
def seg_data_preprocessor(mean: Optional[Sequence[float]] = None, std: Optional[Sequence[float]] = None,
                          **kwargs) -> nn.Module:
    """mmseg's ``SegDataPreProcessor``, with a mean and a deviation of any number of channels::

        data_preprocessor = dict(type='mmlk.SegDataPreProcessor', mean=[90, 95, 88, 120], std=[50, 50, 50, 60],
                                 size=(512, 512), pad_val=0, seg_pad_val=255)

    Args:
        mean: Of each channel of the images, in their order, or one for all; None to leave the images as they are.
        std: The deviation, likewise.
        kwargs: To mmseg's.

    Raises:
        ValueError: Only one of both is given, they are of different lengths, a deviation is not above zero, or channels
            are to be swapped (``bgr_to_rgb``, ``rgb_to_bgr``) that are not three.
    """
    from mmseg.models import SegDataPreProcessor
    return _build(SegDataPreProcessor, mean, std, kwargs)


@MODELS.register_module(name='DetDataPreprocessor')
def det_data_preprocessor(mean: Optional[Sequence[float]] = None, std: Optional[Sequence[float]] = None,
                          **kwargs) -> nn.Module:
    """mmdet's ``DetDataPreprocessor``; see :func:`seg_data_preprocessor`."""
    from mmdet.models import DetDataPreprocessor
    return _build(DetDataPreprocessor, mean, std, kwargs)


def _build(kind: type, mean: Optional[Sequence[float]], std: Optional[Sequence[float]], options: dict) -> nn.Module:
    if (mean is None) != (std is None) or mean is not None and len(mean) != len(std):
        raise ValueError(f'mean and std must be of the same channels, or both None, got {mean} and {std}')
    swapped = [name for name in ('bgr_to_rgb', 'rgb_to_bgr') if options.get(name)]
    if mean is not None and len(mean) != 3 and swapped:
        raise ValueError(f'{swapped[0]} is of images of three channels, and the mean has {len(mean)}')
    preprocessor = kind(**options)
    if mean is not None:
        if min(std) <= 0:
            raise ValueError(f'std must be above zero, got {std}')
        preprocessor.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), False)
        preprocessor.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), False)
        preprocessor._enable_normalize = True
    return preprocessor
