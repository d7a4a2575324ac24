"""Corruptions of images, with which a test measures how robust a network is.

These are the 15 corruptions of ImageNet-C at 5 severities (Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations, Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261). The parameters are those of
https://github.com/bethgelab/imagecorruptions, which made https://github.com/hendrycks/robustness fit images of any
size, and with which COCO-C and Cityscapes-C were made (arXiv:1907.07484).

- Parameters are in pixels and do not grow with the image, as published: the same severity is weaker on a larger image.
  The exceptions are published, too: the field of ``elastic_transform`` and the cloud of ``fog`` grow with the image.
- ``frost`` differs: the published one lays crops of photographs over the image. Here the ice is drawn, with the mean
  brightness and contrast of those photographs and the published weights.
- Values are cut off, not rounded, when they become bytes, as published.
- The random numbers depend on a seed, the corruption, the severity and the pixels of the image. So they are the same
  with any number of workers and processes, in any order, and wherever the image lies.
"""
import io
import zlib
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image
from scipy.ndimage import map_coordinates
from torch.utils.data import Dataset

from mmlk._types import is_a, type_name
from mmlk.datasets.check import datasets
from mmlk.datasets.samples import leaves
from mmlk.registry import TRANSFORMS

#: The corruptions by category.
CATEGORIES: Dict[str, Tuple[str, ...]] = {
    'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
    'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    'weather': ('snow', 'frost', 'fog', 'brightness'),
    'digital': ('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
}
#: The 15 corruptions, in the order of the paper.
CORRUPTIONS: Tuple[str, ...] = sum(CATEGORIES.values(), ())
#: The severities, from weak to strong.
SEVERITIES = (1, 2, 3, 4, 5)

# For each severity, as published. Deviations and weights are of pixels in [0, 1], lengths are in pixels.
_PARAMETERS: Dict[str, Sequence[Tuple[float, ...]]] = {
    'gaussian_noise': [(.08, ), (.12, ), (.18, ), (.26, ), (.38, )],  # deviation
    'shot_noise': [(60, ), (25, ), (12, ), (5, ), (3, )],  # photons of a white pixel
    'impulse_noise': [(.03, ), (.06, ), (.09, ), (.17, ), (.27, )],  # share of values
    'defocus_blur': [(3, .1), (4, .5), (6, .5), (8, .5), (10, .5)],  # radius of the disk, deviation of its edge
    'glass_blur': [(.7, 1, 2), (.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],  # deviation, reach, rounds
    'motion_blur': [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],  # radius, deviation
    'zoom_blur': [(1.11, .01), (1.16, .01), (1.21, .02), (1.26, .02), (1.31, .03)],  # end of the factors, step
    # mean and deviation of the flakes, zoom, threshold, radius and deviation of the motion, weight of the image
    'snow': [(.1, .3, 3, .5, 10, 4, .8), (.2, .3, 2, .5, 12, 4, .7), (.55, .3, 4, .9, 12, 8, .7),
             (.55, .3, 4.5, .85, 12, 8, .65), (.55, .3, 2.5, .85, 12, 12, .55)],
    'frost': [(1, .4), (.8, .6), (.7, .7), (.65, .7), (.6, .75)],  # weights of the image and of the ice
    'fog': [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],  # weight of the cloud, decay of its detail
    'brightness': [(.1, ), (.2, ), (.3, ), (.4, ), (.5, )],  # added to the value of HSV
    'contrast': [(.4, ), (.3, ), (.2, ), (.1, ), (.05, )],  # factor
    'elastic_transform': [(12.5, ), (16.25, ), (21.25, ), (25, ), (30, )],  # factor of the smoothed field
    'pixelate': [(.6, ), (.5, ), (.4, ), (.3, ), (.25, )],  # factor of the size
    'jpeg_compression': [(25, ), (18, ), (15, ), (10, ), (7, )],  # quality of Pillow
}


def corrupt(image: np.ndarray, corruption: str, severity: int, seed: int = 0) -> np.ndarray:
    """Returns a corrupted copy of an image.

    Args:
        image: (H, W, 3), uint8, RGB, of any size.
        corruption: One of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: Not negative.

    Returns:
        (H, W, 3), uint8, RGB.

    Raises:
        ValueError: There is no such corruption or severity, or the image has another shape or dtype.
    """
    _check_choice(corruption, severity)
    _check_image(image)
    image = np.ascontiguousarray(image)
    random = np.random.default_rng([seed, zlib.crc32(corruption.encode()), severity, zlib.crc32(image)])
    return _FUNCTIONS[corruption](image, random, *_PARAMETERS[corruption][severity - 1])


def _check_choice(corruption: str, severity: int) -> None:
    if corruption not in CORRUPTIONS:
        raise ValueError(f"there is no corruption {corruption!r}; there are {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f'severity must be 1 to 5, got {severity!r}')


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError('corruptions are defined for 8-bit images of three channels, shape (H, W, 3), got '
                         f'{image.dtype} of shape {image.shape}')


@TRANSFORMS.register_module()
class Corrupt(BaseTransform):
    """Corrupts an image right after it was loaded, before it is resized or padded.

    It takes ``img`` of mmcv's ``LoadImageFromFile``: (H, W, 3), uint8, BGR. The size does not change, so annotations
    stay as they are.

    Args:
        corruption: One of ``CORRUPTIONS``; None for the clean image.
        severity: 1 to 5.
        seed: Seed of the random numbers, not negative.

    Raises:
        ValueError: There is no such corruption or severity; or, when an image is transformed, it has another shape or
            dtype. A clean image is checked as well, so that a test that begins with clean images fails at once.
    """

    def __init__(self, corruption: Optional[str] = None, severity: int = 1, seed: int = 0):
        if corruption is not None:
            _check_choice(corruption, severity)
        self.corruption, self.severity, self.seed = corruption, severity, seed

    def transform(self, results: dict) -> dict:
        _check_image(results['img'])
        if self.corruption is not None:
            image = corrupt(results['img'][..., ::-1], self.corruption, self.severity, self.seed)
            results['img'] = np.ascontiguousarray(image[..., ::-1])
        return results


def add_corrupt(cfg: dict, seed: int = 0) -> None:
    """Adds ``mmlk.Corrupt`` to the pipelines of the test set, in-place, right after the image is loaded.

    Workers end after each pass over the test set, because they would not see a later :func:`set_corruption`.

    Args:
        cfg: A whole config of mmseg, mmdet or mmpretrain.
        seed: Seed of the transform.

    Raises:
        ValueError: A pipeline does not load an image by ``LoadImageFromFile``, or has a transform ``Corrupt`` already.
    """
    for where, dataset in datasets(cfg, 'test'):
        pipeline = list(dataset.get('pipeline') or ())
        loads = [place for place, step in enumerate(pipeline)
                 if is_a(step, 'LoadImageFromFile', 'TRANSFORMS', cfg.get('default_scope'))]
        if not loads:
            raise ValueError(f'images are corrupted right after LoadImageFromFile, and {where}.pipeline has none')
        if any(type_name(step) == 'Corrupt' for step in pipeline):
            raise ValueError(f'{where}.pipeline corrupts images already; take Corrupt out of it')
        pipeline.insert(loads[0] + 1, dict(type='mmlk.Corrupt', seed=seed))
        dataset['pipeline'] = pipeline
    cfg['test_dataloader']['persistent_workers'] = False


def set_corruption(dataset: Dataset, corruption: Optional[str], severity: int = 1) -> None:
    """Sets the corruption of each ``mmlk.Corrupt`` in the pipelines of a built dataset or wrapper.

    Args:
        dataset: A dataset of a config after :func:`add_corrupt`.
        corruption: One of ``CORRUPTIONS``; None for clean images.
        severity: 1 to 5.
    """
    for part in leaves(dataset):
        for step in part.pipeline.transforms:
            if isinstance(step, Corrupt):
                step.corruption, step.severity = corruption, severity


# Each function takes an image, a generator and the parameters of a severity. Pixels are float32 in [0, 255].


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """Cuts off as published. A value that misses an integer by a rounding error only counts as this integer."""
    return np.clip(pixels + 1e-3, 0, 255).astype(np.uint8)


def _gaussian_noise(image: np.ndarray, random: np.random.Generator, deviation: float) -> np.ndarray:
    return _bytes(image + np.float32(255 * deviation) * random.standard_normal(image.shape, np.float32))


def _shot_noise(image: np.ndarray, random: np.random.Generator, photons: float) -> np.ndarray:
    return _bytes(random.poisson(image * (photons / 255)) * 255 / photons)


def _impulse_noise(image: np.ndarray, random: np.random.Generator, share: float) -> np.ndarray:
    hit, white = random.random((2, *image.shape), np.float32)
    return np.where(hit <= share, np.where(white < 0.5, np.uint8(255), np.uint8(0)), image)


def _defocus_blur(image: np.ndarray, random: np.random.Generator, radius: float, edge: float) -> np.ndarray:
    reach, soft = (8, 3) if radius <= 8 else (int(radius), 5)
    place = np.arange(-reach, reach + 1)
    disk = (place**2 + place[:, None]**2 <= radius**2).astype(np.float32)
    disk = cv2.GaussianBlur(disk / disk.sum(), (soft, soft), edge)
    return _bytes(cv2.filter2D(image.astype(np.float32), -1, disk))


def _glass_blur(image: np.ndarray, random: np.random.Generator, deviation: float, reach: int,
                rounds: int) -> np.ndarray:
    blurred = _bytes(_smooth(image.astype(np.float32), (deviation, deviation)))
    height, width = (max(0, side - 2 * reach) for side in image.shape[:2])
    for _ in range(rounds):
        blurred = _take_neighbours(blurred, random.integers(-reach, reach, (2, height, width), np.int32), reach)
    return _bytes(_smooth(blurred.astype(np.float32), (deviation, deviation)))


def _take_neighbours(image: np.ndarray, offsets: np.ndarray, reach: int) -> np.ndarray:
    """Gives pixels the values of neighbours, one pixel after the other from the last to the first.

    The published code means to exchange two pixels, but copies one onto the other, because NumPy's rows are views. A
    pixel thus takes the new value of a neighbour behind it and the old value of one before it. All pixels at once: each
    points to a neighbour behind it, or to itself; following these pointers ends at a pixel that took an old value.

    Args:
        image: (H, W, 3).
        offsets: (2, H - 2 * reach, W - 2 * reach): rows and columns from a pixel to its neighbour, for the pixels from
            row and column ``reach + 1`` to row ``H - reach`` and column ``W - reach``.
        reach: The largest offset.
    """
    height, width = image.shape[:2]
    place = np.arange(height * width, dtype=np.int32).reshape(height, width)
    neighbour = place.copy()
    inner = slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1)
    neighbour[inner] += offsets[0] * width + offsets[1]
    place, neighbour = place.ravel(), neighbour.ravel()
    end = np.maximum(place, neighbour)
    while not np.array_equal(further := end[end], end):
        end = further
    return image.reshape(-1, 3)[neighbour[end]].reshape(image.shape)


def _motion_blur(image: np.ndarray, random: np.random.Generator, radius: int, deviation: float) -> np.ndarray:
    return _bytes(_move(image.astype(np.float32), radius, deviation, random.uniform(-45, 45)))


def _zoom_blur(image: np.ndarray, random: np.random.Generator, end: float, step: float) -> np.ndarray:
    pixels = image.astype(np.float32)
    factors = np.arange(1, end, step)  # 12 at severity 1, by rounding: 1.11 is the last
    total = pixels.copy()
    for factor in factors:
        total += _zoom(pixels, factor)
    return _bytes(total / (1 + len(factors)))


def _snow(image: np.ndarray, random: np.random.Generator, mean: float, deviation: float, zoom: float, threshold: float,
          radius: int, motion: float, weight: float) -> np.ndarray:
    flakes = _zoom(random.normal(mean, deviation, image.shape[:2]).astype(np.float32), zoom)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = np.round(255 * _move(flakes, radius, motion, random.uniform(-135, -45)))[..., None]
    pixels = image.astype(np.float32)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    pixels = weight * pixels + (1 - weight) * np.maximum(pixels, 1.5 * grey + 127.5)
    return _bytes(pixels + flakes + flakes[::-1, ::-1])


def _frost(image: np.ndarray, random: np.random.Generator, weight: float, ice: float) -> np.ndarray:
    return _bytes(weight * image.astype(np.float32) + ice * draw_ice(image.shape[0], image.shape[1], random))


def _fog(image: np.ndarray, random: np.random.Generator, weight: float, decay: float) -> np.ndarray:
    height, width = image.shape[:2]
    brightest = image.max() / 255
    cloud = _cloud(max(height, width), decay, random)[:height, :width, None]
    return _bytes((image + np.float32(255 * weight) * cloud) * np.float32(brightest / (brightest + weight)))


def _brightness(image: np.ndarray, random: np.random.Generator, added: float) -> np.ndarray:
    """Hue and saturation of HSV stay when all channels are multiplied by the same factor."""
    value = image.max(2, keepdims=True).astype(np.float32)
    brighter = np.minimum(value + np.float32(255 * added), 255)
    return _bytes(np.where(value > 0, image * brighter / np.maximum(value, 1), brighter))  # black becomes grey


def _contrast(image: np.ndarray, random: np.random.Generator, factor: float) -> np.ndarray:
    mean = image.mean((0, 1))
    table = _bytes((np.arange(256)[:, None] - mean) * factor + mean)
    return np.take_along_axis(table, image.reshape(-1, 3), 0).reshape(image.shape)


def _elastic_transform(image: np.ndarray, random: np.random.Generator, factor: float) -> np.ndarray:
    height, width = image.shape[:2]
    field = random.uniform(-0.005 * height, 0.005 * height, (height, width, 2)).astype(np.float32)
    field = factor * _smooth(field, (0.01 * height, 0.01 * width), 3, cv2.BORDER_REFLECT)
    rows, columns = np.arange(height)[:, None] + field[..., 0], np.arange(width) + field[..., 1]
    pixels = image.astype(np.float32)
    return _bytes(np.stack([map_coordinates(pixels[..., channel], (rows, columns), order=1, mode='reflect')
                            for channel in range(3)], 2))


def _pixelate(image: np.ndarray, random: np.random.Generator, factor: float) -> np.ndarray:
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((max(1, int(width * factor)), max(1, int(height * factor))),
                                          Image.Resampling.BOX)
    return np.array(small.resize((width, height), Image.Resampling.NEAREST))


def _jpeg_compression(image: np.ndarray, random: np.random.Generator, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=quality)
    return np.array(Image.open(file))


_FUNCTIONS: Dict[str, Callable[..., np.ndarray]] = {name: globals()[f'_{name}'] for name in CORRUPTIONS}


def _smooth(pixels: np.ndarray, deviation: Tuple[float, float], truncate: float = 4,
            border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """A Gaussian filter with a deviation for rows and one for columns, as ``scipy.ndimage.gaussian_filter``."""
    kernels: List[np.ndarray] = []
    for sigma in deviation:
        place = np.arange(-int(truncate * sigma + 0.5), int(truncate * sigma + 0.5) + 1)
        kernel = np.exp(-0.5 * (place / sigma)**2)
        kernels.append(kernel / kernel.sum())
    return cv2.sepFilter2D(pixels, -1, kernels[1], kernels[0], borderType=border)


def _move(pixels: np.ndarray, radius: int, deviation: float, angle: float) -> np.ndarray:
    """The mean of shifted images along a line to one side, with the weights of half a Gaussian.

    Unlike the published code, which leaves out shifts by more than the image and makes small images darker, all shifts
    count.

    Args:
        pixels: (H, W) or (H, W, 3), float32. The border is repeated.
        radius: The line has ``2 * radius + 1`` pixels.
        deviation: In pixels.
        angle: In degrees.
    """
    along = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (along / deviation)**2)
    rows, columns = (np.ceil(along * turn(np.deg2rad(angle)) - 0.5).astype(int) for turn in (np.sin, np.cos))
    kernel = np.zeros((4 * radius + 3, 4 * radius + 3), np.float32)
    np.add.at(kernel, (rows + 2 * radius + 1, columns + 2 * radius + 1), weights / weights.sum())
    return cv2.filter2D(pixels, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def _zoom(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Enlarges the middle of an image, with linear interpolation between the centres of its corners."""
    for axis in (0, 1):
        side = pixels.shape[axis]
        part = int(np.ceil(side / factor))
        large = round(part * factor)
        place = (side - part) // 2 + np.arange(side) * ((part - 1) / max(1, large - 1))
        before = place.astype(int)
        after = np.minimum(before + 1, side - 1)
        share = (place - before).astype(np.float32).reshape([-1 if other == axis else 1
                                                             for other in range(pixels.ndim)])
        pixels = pixels.take(before, axis) * (1 - share) + pixels.take(after, axis) * share
    return pixels


def _cloud(side: int, decay: float, random: np.random.Generator) -> np.ndarray:
    """A random map by the diamond-square algorithm on a torus.

    Args:
        side: At least as many rows and columns are made.
        decay: By which the random part is divided when the grid is made finer.

    Returns:
        (N, N), float32, from 0 to 1; N is a power of two.
    """
    side = 1 << max(1, (side - 1).bit_length())
    heights = np.zeros((side, side), np.float32)
    step, spread = side, 100.0
    while step > 1:
        half = step // 2
        shape = side // step, side // step

        def near(total: np.ndarray) -> np.ndarray:
            noise = random.uniform(-spread, spread, shape).astype(np.float32)
            return total / 4 + np.float32(spread) * noise

        corner = heights[::step, ::step]
        right, below = np.roll(corner, -1, 1), np.roll(corner, -1, 0)
        centre = near(corner + right + below + np.roll(right, -1, 0))
        heights[half::step, half::step] = centre
        heights[::step, half::step] = near(corner + right + centre + np.roll(centre, 1, 0))
        heights[half::step, ::step] = near(corner + below + centre + np.roll(centre, 1, 1))
        step, spread = half, spread / decay
    heights -= heights.min()
    return heights / heights.max()


def draw_ice(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Draws ice on a window: feathers over a milky layer of uneven thickness, slightly blue.

    Args:
        height: In pixels.
        width: In pixels.
        random: A generator.

    Returns:
        (height, width, 3), float32, RGB in [0, 255]. The mean of 164 and the deviation of about 28 are those of the
        photographs of ImageNet-C, on average over the five that its code draws from.
    """
    layer = _cloud(max(height, width), 1.8, random)[:height, :width]
    feathers = np.zeros((height, width), np.uint8)
    for bright in (100, 170, 255):
        begin, along = _feathers(4 + height * width // 700, layer, random)
        ends = np.stack([begin, begin + along], -2)  # (lines, 2, 2): of each end x and y
        cv2.polylines(feathers, list((16 * ends).astype(np.int32)), False, bright, 1, cv2.LINE_AA, shift=4)
    feathers = cv2.GaussianBlur(feathers.astype(np.float32), (3, 3), 0)
    relief = feathers - np.pad(feathers, ((2, 0), (2, 0)), 'edge')[:-2, :-2]  # lit from one side
    ice = 90 * layer + 0.22 * feathers + 0.12 * relief
    return np.clip((164 + ice - ice.mean())[..., None] + np.float32((-9, 1, 8)), 0, 255)


def _feathers(number: int, layer: np.ndarray, random: np.random.Generator) -> Tuple[np.ndarray, np.ndarray]:
    """Lines of feathers: a shaft with barbs on both sides, whose direction depends on the layer below them.

    Returns:
        Beginnings and vectors of the lines, (lines, 2) each, as x and y in pixels.
    """
    def vector(length: np.ndarray, angle: np.ndarray) -> np.ndarray:
        return length[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)

    begin = random.random((number, 2)) * layer.shape[::-1]
    column, row = begin.astype(int).T
    angle = 12 * layer[row, column] + random.normal(0, 0.5, number)
    length = random.lognormal(3.5, 0.5, number)  # about 35 pixels
    shaft = vector(length, angle)
    place = random.uniform(0.05, 0.95, (number, 16))
    barb = 0.4 * (1 - place) * length[:, None] * random.uniform(0.5, 1, place.shape)
    roots = begin[:, None] + place[..., None] * shaft[:, None]
    barbs = [vector(barb, angle[:, None] + side) for side in (-0.7, 0.7)]
    return (np.concatenate([begin, roots.reshape(-1, 2), roots.reshape(-1, 2)]),
            np.concatenate([shaft, *(part.reshape(-1, 2) for part in barbs)]))
