"""Mean, standard deviation and channel order of the images that a network takes.

:class:`Normalization` reads them from a config, a data preprocessor or a model of timm. The two data preprocessors are
those of mmsegmentation and mmdetection, extended to any number of channels; the originals accept a mean of one or three
values. A toolbox is imported only when a config uses its preprocessor.
"""
from typing import Any, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmlk.registry import MODELS

#: Mean and standard deviation of the pixels of ImageNet, for values from 0 to 255, in the order red, green, blue.
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Normalization(NamedTuple):
    """Normalizes an image with values from 0 to 255 to the input of a network: ``(image - mean) / std``.

    Args:
        mean: One value for each channel, in the order of the network's input channels, or one value for all channels.
        std: The standard deviation, in the same form.
        bgr: Whether the network's input channels are in the order blue, green, red. For three channels only.
    """
    mean: Tuple[float, ...] = IMAGENET_MEAN
    std: Tuple[float, ...] = IMAGENET_STD
    bgr: bool = False

    @classmethod
    def imagenet(cls, channels: int = 3) -> 'Normalization':
        """Returns the normalization of ImageNet, for images of :func:`mmlk.datasets.images.to_bands`.

        For one channel the values are the averages over red, green and blue. For more than three channels they are
        those of red, green, blue, red, and so on.
        """
        if channels == 1:
            return cls((sum(IMAGENET_MEAN) / 3, ), (sum(IMAGENET_STD) / 3, ))
        mean, std = (tuple(values[index % 3] for index in range(channels)) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return cls(mean, std)

    @classmethod
    def of_config(cls, cfg: Config, channels: int = 3) -> 'Normalization':
        """Returns the normalization of the data preprocessor in a config.

        If the data preprocessor has no mean and std, they are 0 and 1. If the config has no data preprocessor, they are
        those of ImageNet.

        Args:
            cfg: A whole config of mmseg, mmdet or mmpretrain.
            channels: Number of channels of the images.
        """
        settings = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
        if not settings:
            return cls.imagenet(channels)
        to_rgb = settings.get('bgr_to_rgb') or settings.get('to_rgb')  # mmcv reads images as BGR
        return cls(tuple(settings.get('mean') or (0, ) * channels), tuple(settings.get('std') or (1, ) * channels),
                   channels == 3 and not to_rgb)

    @classmethod
    def of_preprocessor(cls, preprocessor: nn.Module, channels: int = 3) -> 'Normalization':
        """Returns the normalization of a data preprocessor; mean 0 and std 1 if it does not normalize.

        Args:
            preprocessor: A data preprocessor of mmseg, mmdet or mmpretrain.
            channels: Number of channels of the images.
        """
        values = [getattr(preprocessor, name, None) for name in ('mean', 'std')]
        mean, std = ((neutral, ) if value is None else tuple(value.flatten().tolist())
                     for value, neutral in zip(values, (0.0, 1.0)))
        # mmengine's ImgDataPreprocessor, and mmpretrain's, name the attribute so
        to_rgb = getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'channel_conversion', False))
        return cls(mean, std, channels == 3 and not to_rgb)

    @classmethod
    def of_timm(cls, pretrained_cfg: Mapping[str, Any]) -> 'Normalization':
        """Returns the normalization of a model of timm, whose ``pretrained_cfg`` is for values from 0 to 1."""
        mean, std = (tuple(255 * value for value in pretrained_cfg[key]) for key in ('mean', 'std'))
        usual = (*IMAGENET_MEAN, *IMAGENET_STD)
        same = all(abs(ours - theirs) < 1e-3 for ours, theirs in zip(usual, (*mean, *std)))
        return cls() if same else cls(mean, std)  # 255 times 0.485 is not quite 123.675

    def tensors(self, like: Tensor) -> Tuple[Tensor, Tensor]:
        """Returns mean and std, both (C, 1, 1) or (1, 1, 1), with the dtype and device of ``like``."""
        mean, std = (like.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return mean, std

    def __call__(self, images: Tensor) -> Tensor:
        """Normalizes images.

        Args:
            images: (C, H, W) or (N, C, H, W), floating point, values from 0 to 255. Three channels are RGB.

        Returns:
            The input of the network, with the same shape and dtype.
        """
        mean, std = self.tensors(images)
        return ((images.flip(-3) if self.bgr else images) - mean) / std


@MODELS.register_module(name='SegDataPreProcessor')
def seg_data_preprocessor(mean: Optional[Sequence[float]] = None, std: Optional[Sequence[float]] = None,
                          **kwargs) -> nn.Module:
    """Builds mmseg's ``SegDataPreProcessor`` with a mean and std for any number of channels::

        data_preprocessor = dict(type='mmlk.SegDataPreProcessor', mean=[90, 95, 88, 120], std=[50, 50, 50, 60],
                                 size=(512, 512), pad_val=0, seg_pad_val=255)

    Args:
        mean: One value for each channel, in the order of the images' channels, or one value for all. None for images
            that are not normalized.
        std: The standard deviation, in the same form.
        kwargs: Passed to mmseg's ``SegDataPreProcessor``.

    Returns:
        The data preprocessor.

    Raises:
        ValueError: Only one of ``mean`` and ``std`` is given, their lengths differ, a value of ``std`` is not positive,
            or ``bgr_to_rgb`` or ``rgb_to_bgr`` is set for a number of channels other than three.
    """
    from mmseg.models import SegDataPreProcessor
    return _build(SegDataPreProcessor, mean, std, kwargs)


@MODELS.register_module(name='DetDataPreprocessor')
def det_data_preprocessor(mean: Optional[Sequence[float]] = None, std: Optional[Sequence[float]] = None,
                          **kwargs) -> nn.Module:
    """Builds mmdet's ``DetDataPreprocessor``. Arguments and errors are those of :func:`seg_data_preprocessor`."""
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
