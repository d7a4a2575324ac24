"""Images for networks that take one channel, three, or more: grey, RGB, and what satellites and microscopes give."""
from pathlib import Path
from typing import Optional, Tuple

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor, nn

from .classifiers import open_image

_TIFF = ('.tif', '.tiff')


def in_channels(cfg: Config) -> int:
    """Channels of the images that the backbone of a config takes; three where it does not say."""
    return cfg.model.backbone.get('in_channels', 3)


def to_bands(image: np.ndarray, channels: int) -> np.ndarray:
    """A picture (H, W, 3), RGB, with so many channels: grey for one, and red, green and blue in turn for more than
    three. (H, W, channels), uint8."""
    if channels == 1:
        return np.array(Image.fromarray(image).convert('L'))[..., None]
    return image[..., np.arange(channels) % 3]


def open_bands(path: Path, channels: int) -> np.ndarray:
    """The image in a file, 8 bits, (H, W, channels): RGB for three channels, grey for one. For any other number the
    channels that the file has, if it has as many, of 16 bits the upper eight; else those of :func:`to_bands`.

    Raises:
        ValueError: The file cannot be read as an image.
    """
    own = _own_bands(path) if channels not in (1, 3) else None
    if own is not None and own.shape[2] == channels:
        return own
    return to_bands(viewable(path), channels)


def viewable(path: Path) -> np.ndarray:
    """What to show of an image, (H, W, 3), uint8 RGB: of a TIFF with more channels than four, the first three, of which
    Pillow gives the first page or nothing.

    Raises:
        ValueError: The file cannot be read as an image.
    """
    own = _own_bands(path) if path.suffix.lower() in _TIFF else None
    return own[..., :3] if own is not None and own.shape[2] > 4 else np.array(open_image(path))


def _own_bands(path: Path) -> Optional[np.ndarray]:
    """(H, W, C), uint8, as they are in the file; None where they cannot be read so."""
    try:
        if path.suffix.lower() in _TIFF:
            import tifffile
            bands = tifffile.imread(path)
        else:
            with Image.open(path) as image:
                bands = np.asarray(image)
    except Exception:  # decoders raise about anything on a broken file
        return None
    bands = bands[..., None] if bands.ndim == 2 else bands
    if bands.ndim == 3 and bands.shape[0] < min(bands.shape[1:]) and path.suffix.lower() in _TIFF:
        bands = bands.transpose(1, 2, 0)  # one plane after the other
    if bands.ndim != 3 or bands.dtype not in (np.uint8, np.uint16):
        return None
    return bands if bands.dtype == np.uint8 else (bands >> 8).astype(np.uint8)


def constants(preprocessor: nn.Module) -> Tuple[Tensor, Tensor]:
    """Mean and deviation, (C, 1, 1) or (1, 1, 1), by which a data preprocessor normalises images; 0 and 1 where it does
    not."""
    values = []
    for name, neutral in (('mean', 0.0), ('std', 1.0)):
        value = getattr(preprocessor, name, None)
        values.append(torch.full((1, 1, 1), neutral) if value is None else value.detach().clone().float())
    return tuple(values)


def converts_channels(preprocessor: nn.Module) -> bool:
    """Whether a data preprocessor turns the BGR images of mmcv into RGB."""
    return bool(getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'channel_conversion', False)))
