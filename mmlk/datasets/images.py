"""Finding image files and reading them as arrays of one channel (grey), three (RGB) or more (satellites, microscopes).

Trainings and tests read images with the steps of their config's pipeline; the analyses and the export read them here.
PyTorch is imported only to make tensors.
"""
import os
import os.path as osp
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Tuple, Union

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

#: Endings, in small letters, of the files that :func:`find_images` takes for images.
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')

_PHOTOGRAPHS = ('astronaut.png', 'camera.png', 'chelsea.png', 'coffee.png', 'motorcycle_left.png', 'rocket.jpg')
_TIFF = ('.tif', '.tiff')

# How a whole file ends, by how it begins. Bytes may follow.
_ENDS = {b'\xff\xd8': b'\xff\xd9', b'\x89PNG\r\n\x1a\n': b'IEND\xaeB`\x82'}


def find_images(folder: str) -> List[Path]:
    """Find the images in a folder and in all folders inside it.

    Returns:
        The paths of the files whose name ends in one of ``SUFFIXES``, sorted.

    Raises:
        ValueError: There is no such folder, or no image in it.
    """
    if not osp.isdir(folder):
        raise ValueError(f'no folder {folder}')
    images = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in SUFFIXES)
    if not images:
        raise ValueError(f"no image in {folder}: files that end in {', '.join(SUFFIXES)}")
    return images


def packaged_photographs() -> List[Path]:
    """The paths of the photographs that the package scikit-image contains.

    Raises:
        ValueError: scikit-image is not installed, or contains none of them.
    """
    package = find_spec('skimage')  # without importing it, which takes a second
    folder = Path(package.origin).parent / 'data' if package else Path('skimage')
    photographs = [folder / name for name in _PHOTOGRAPHS if (folder / name).is_file()]
    if not photographs:
        raise ValueError('scikit-image and the photographs in it are not installed; name a folder of images')
    return photographs


def open_image(path: Path) -> Image.Image:
    """Read a file as an RGB image of 8 bits.

    Of a grey image all three channels are the same; of 16 bits the upper eight are taken; an alpha channel is left out.

    Raises:
        ValueError: The file cannot be read as an image, or its pixels are numbers of 32 bits.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith('I;16'):  # Pillow would cut off at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            elif image.mode in ('I', 'F'):
                raise ValueError('its pixels are numbers of 32 bits, of no known range')
            return image.convert('RGB')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise ValueError(f'{path} cannot be read as an image: {error}') from error


def check_end(path: str) -> None:
    """Checks that an image file on the local disk is complete. Decoders return a part of a truncated file silently.

    Raises:
        ValueError: The file is truncated or damaged.
    """
    if not osp.isfile(path):
        return
    with open(path, 'rb') as file:
        head = file.read(8)
        file.seek(max(0, os.fstat(file.fileno()).st_size - 8))
        tail = file.read()
    end = next((end for begin, end in _ENDS.items() if head.startswith(begin)), b'')
    if not tail.endswith(end):  # truncated, or more bytes follow the end of the image
        try:
            with Image.open(path) as image:
                image.load()
        except Exception as error:  # Pillow's decoders raise many types of errors for a damaged file
            raise ValueError(f'is truncated or damaged ({error})') from error


def to_tensor(image: Image.Image, size: int) -> 'Tensor':
    """Convert an RGB image to a tensor, resized (bicubic, without keeping the aspect ratio) if it has another size.

    Args:
        image: In the mode 'RGB', as :func:`open_image` gives it.
        size: Height and width in pixels.

    Returns:
        (3, size, size), float32, values from 0 to 255.
    """
    import torch
    if image.size != (size, size):
        image = image.resize((size, size), Image.BICUBIC)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1).float()


def to_bands(image: np.ndarray, channels: int) -> np.ndarray:
    """Give an RGB image another number of channels.

    Args:
        image: (H, W, 3), uint8, RGB.
        channels: 1 for grey. More than three are red, green, blue, red, green, ...

    Returns:
        (H, W, channels), uint8.
    """
    if channels == 1:
        return np.array(Image.fromarray(image).convert('L'))[..., None]
    return image[..., np.arange(channels) % 3]


def open_bands(path: Path, channels: int) -> np.ndarray:
    """Read a file as an image of a given number of channels.

    Args:
        path: The file.
        channels: 1 gives grey and 3 gives RGB. For any other number, a file of as many channels is read as it is (of 16
            bits the upper eight), and any other file as RGB, which :func:`to_bands` then extends.

    Returns:
        (H, W, channels), uint8.

    Raises:
        ValueError: The file cannot be read as an image.
    """
    own = _own_bands(path) if channels not in (1, 3) else None
    if own is not None and own.shape[2] == channels:
        return own
    return to_bands(viewable(path), channels)


def viewable(path: Path) -> np.ndarray:
    """Read a file as an image to show to people: (H, W, 3), uint8, RGB.

    Of a TIFF with more than four channels these are the first three; Pillow would give its first page, or nothing.

    Raises:
        ValueError: The file cannot be read as an image.
    """
    many = _first_of_many(path)
    return np.array(open_image(path)) if many is None else many


def as_loaded(path: Path) -> np.ndarray:
    """Reads a file as an image to show beside predictions: as mmcv loads it for a model, rotated by its EXIF data.

    A TIFF with more than four channels, and a file that OpenCV cannot read, is read by :func:`viewable`.

    Returns:
        (H, W, 3), uint8, RGB.

    Raises:
        ValueError: The file cannot be read as an image.
    """
    import mmcv
    many = _first_of_many(path)  # OpenCV would return the first page of a planar TIFF
    if many is not None:
        return many
    try:
        return mmcv.imread(str(path), channel_order='rgb')
    except Exception:  # OpenCV's errors
        return viewable(path)


def _first_of_many(path: Path) -> Optional[np.ndarray]:
    """Returns the first three channels, (H, W, 3), uint8, of a TIFF with more than four; None for any other file."""
    own = _own_bands(path) if path.suffix.lower() in _TIFF else None
    return own[..., :3] if own is not None and own.shape[2] > 4 else None


def _own_bands(path: Path) -> Optional[np.ndarray]:
    """(H, W, C), uint8, as the file has them; None if the file cannot be read so."""
    try:
        if path.suffix.lower() in _TIFF:
            import tifffile
            bands = tifffile.imread(path)
        else:
            with Image.open(path) as image:
                bands = np.asarray(image)
    except Exception:  # decoders raise any type of error on a broken file
        return None
    bands = bands[..., None] if bands.ndim == 2 else bands
    if bands.ndim == 3 and bands.shape[0] < min(bands.shape[1:]) and path.suffix.lower() in _TIFF:
        bands = bands.transpose(1, 2, 0)  # a planar TIFF is (C, H, W)
    if bands.ndim != 3 or bands.dtype not in (np.uint8, np.uint16):
        return None
    return bands if bands.dtype == np.uint8 else (bands >> 8).astype(np.uint8)


def read_image(path: Path, size: Union[int, Tuple[int, int]], channels: int = 3) -> np.ndarray:
    """Read a file as :func:`open_bands` does, and resize it (bicubic, without keeping the aspect ratio).

    Args:
        path: The file.
        size: Height and width in pixels, or one number for both.
        channels: As in :func:`open_bands`.

    Returns:
        (height, width, channels), uint8.

    Raises:
        ValueError: The file cannot be read as an image.
    """
    height, width = (size, size) if isinstance(size, int) else size
    bands = open_bands(path, channels).transpose(2, 0, 1)
    return np.stack([np.array(Image.fromarray(band).resize((width, height), Image.BICUBIC)) for band in bands], 2)
