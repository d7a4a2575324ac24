"""Synthetic scenes in which the class of an object can be recognized only by its overall shape.

A scene consists of textured ground and a few overlapping shapes. Colour, texture, size, angle and position are random
and independent of the class. The classes have the same local parts: a disc and a ring have the same outer edge; a
square, a bar and a cross have the same straight edges and right angles. The difference between them (whether there is a
hole, how far away the opposite edge is) spans tens of pixels, so a network needs a receptive field of that size.
Objects have saturated colours and the ground does not, which separates objects from the ground but not the classes from
each other.

Each scene has its own random generator, so it depends only on the seed, the split and its number.
"""
import colorsys
import math
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Tuple

import numpy as np
from PIL import Image

CLASSES = ('ground', 'disc', 'ring', 'square', 'bar', 'cross')
PALETTE = ((96, 96, 96), (230, 75, 60), (245, 190, 40), (70, 130, 230), (60, 175, 90), (165, 85, 200))
SPLITS = ('train', 'val')

# Parameters of the difficulty. Extents are fractions of the image's shorter side.
OBJECTS = (2, 3)  # minimum and maximum number of objects that are tried in a scene
EXTENT = (0.42, 0.66)  # minimum and maximum extent of an object: approximately its longest diameter
MIN_VISIBLE = 0.75  # minimum fraction of an object that later objects leave visible
RING_HOLE = 0.55  # inner radius / outer radius
BAR_WIDTH = 0.34  # width / length, for the bar and for the arms of the cross

PHOTO_TEXTURES = ('brick', 'grass', 'gravel')  # CC0 pictures inside the scikit-image package


class SceneObject(NamedTuple):
    """An object of a scene.

    Args:
        label: Index into ``CLASSES``.
        mask: The visible part, (H, W), bool.
    """
    label: int
    mask: np.ndarray


class Scene(NamedTuple):
    """A scene with its annotations.

    Args:
        image: (H, W, 3), uint8, RGB.
        labels: (H, W), uint8, indices into ``CLASSES``.
        objects: The objects.
    """
    image: np.ndarray
    labels: np.ndarray
    objects: Tuple[SceneObject, ...]


def draw(seed: int, split: str, index: int, size: Tuple[int, int], objects: Tuple[int, int] = OBJECTS) -> Scene:
    """Draw one scene.

    Args:
        seed: Seed of the whole dataset, not negative.
        split: ``'train'`` or ``'val'``. The scenes of the two splits are different.
        index: Number of the scene in its split, not negative.
        size: Height and width in pixels, each at least 32.
        objects: Minimum and maximum number of objects that are tried.

    Raises:
        ValueError: The split is unknown, or the size is too small.
    """
    if split not in SPLITS:
        raise ValueError(f'split is {split!r}; expected one of {SPLITS}')
    if min(size) < 32:
        raise ValueError(f'size is {tuple(size)}; shapes cannot be told apart below 32 pixels a side')
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    height, width = size

    image = _paint(rng, size, _colour(rng.random(), rng.uniform(0.05, 0.22), rng.uniform(0.3, 0.8)))
    owner = np.zeros(size, np.int64)  # 0 for ground, else 1 + the object's place in `labels`
    labels: list = []
    areas: list = []
    first_hue = rng.random()
    for _ in range(rng.integers(objects[0], objects[1] + 1)):
        label = int(rng.integers(1, len(CLASSES)))
        # Golden-ratio steps keep the hues of one scene apart, so that neighbours can be told from each other.
        hue = (first_hue + 0.618 * len(labels)) % 1
        paint = _paint(rng, size, _colour(hue, rng.uniform(0.5, 0.85), rng.uniform(0.5, 0.95)))
        distance = _place(rng, CLASSES[label], owner, areas)
        if distance is None:
            continue
        # A pixel that the edge crosses is mixed by how much of it is covered.
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        image = image * (1 - cover) + paint * cover
        labels.append(label)
        areas.append(int((distance < 0).sum()))
        owner[distance < 0] = len(labels)

    image = image * _light(rng, size) + rng.normal(0, 0.012, (height, width, 1))
    return Scene(image=np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8),
                 labels=np.array([0, *labels], np.uint8)[owner],
                 objects=tuple(SceneObject(label, owner == place + 1) for place, label in enumerate(labels)))


def shape_distance(name: str, x: np.ndarray, y: np.ndarray, extent: float) -> np.ndarray:
    """Returns the signed distance to the edge of a shape in pixels, negative inside.

    Args:
        name: One of ``CLASSES[1:]``.
        x, y: Coordinates in pixels from the shape's centre, along its own axes; any shape, the same for both.
        extent: The shape's size in pixels: a diameter, the length of a bar. The square is drawn a little
            narrower, so that its diagonal does not give it away as the widest of all.
    """
    half = extent / 2
    radius = np.hypot(x, y)
    if name == 'disc':
        return radius - half
    if name == 'ring':
        return np.maximum(radius - half, half * RING_HOLE - radius)
    if name == 'square':
        return _box_distance(x, y, 0.85 * half, 0.85 * half)
    if name == 'bar':
        return _box_distance(x, y, half, half * BAR_WIDTH)
    if name == 'cross':
        return np.minimum(_box_distance(x, y, half, half * BAR_WIDTH),
                          _box_distance(x, y, half * BAR_WIDTH, half))
    raise ValueError(f'shape is {name!r}; expected one of {CLASSES[1:]}')


def _box_distance(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def _place(rng: np.random.Generator, name: str, owner: np.ndarray, areas: list):
    """Returns the distances, (H, W), of a random new object that leaves the earlier ones visible, or None."""
    height, width = owner.shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    for _ in range(20):
        extent = rng.uniform(*EXTENT) * min(height, width)
        # At most a tenth of its extent lies outside the image, on each side.
        margin = 0.4 * extent
        dy, dx = rows - rng.uniform(margin, height - margin), columns - rng.uniform(margin, width - margin)
        angle = rng.uniform(0, math.pi)
        sin, cos = math.sin(angle), math.cos(angle)
        distance = shape_distance(name, cos * dx + sin * dy, cos * dy - sin * dx, extent)
        left = np.bincount(owner[distance >= 0], minlength=len(areas) + 1)[1:]
        if all(seen >= MIN_VISIBLE * area for seen, area in zip(left, areas)):
            return distance
    return None


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _paint(rng: np.random.Generator, size: Tuple[int, int], colour: np.ndarray) -> np.ndarray:
    """Returns the colour, (3,), multiplied by a random texture: (H, W, 3), mostly within 0 to 1."""
    return colour * (1 + rng.uniform(0.25, 0.7) * (_texture(rng, size)[..., None] - 0.5))


def _light(rng: np.random.Generator, size: Tuple[int, int]) -> np.ndarray:
    """Returns a random linear gradient of brightness, (H, W, 1), around 1."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]), indexing='ij')
    angle = rng.uniform(0, 2 * math.pi)
    return (1 + rng.uniform(0, 0.15) * (math.sin(angle) * rows + math.cos(angle) * columns))[..., None]


def _texture(rng: np.random.Generator, size: Tuple[int, int]) -> np.ndarray:
    """Returns a random texture, (H, W), from 0 to 1. The ground and the objects use the same kinds."""
    kind = rng.choice(('cloud', 'grain', 'stripes', 'checks', *PHOTO_TEXTURES))
    height, width = size
    unit = min(size) / 128  # textures grow with the image, as the objects do
    if kind in PHOTO_TEXTURES:
        photo = _photo(str(kind))
        scale = rng.uniform(1, 2) / unit
        across, down = min(photo.width, width * scale), min(photo.height, height * scale)
        left, top = rng.uniform(0, photo.width - across), rng.uniform(0, photo.height - down)
        crop = photo.resize((width, height), Image.BILINEAR, box=(left, top, left + across, top + down))
        return np.asarray(crop, np.float64) / 255
    if kind in ('cloud', 'grain'):
        period = rng.uniform(16, 40) * unit if kind == 'cloud' else rng.uniform(2, 5) * unit
        shape = (max(2, round(height / period)), max(2, round(width / period)))
        noise = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        return np.asarray(noise.resize((width, height), Image.BICUBIC), np.float64) / 255
    rows, columns = np.mgrid[:height, :width]
    angle, period = rng.uniform(0, math.pi), rng.uniform(5, 14) * unit
    along = np.sin((rows * math.sin(angle) + columns * math.cos(angle)) * 2 * math.pi / period)
    if kind == 'stripes':
        return 0.5 + 0.5 * along
    across = np.sin((rows * math.cos(angle) - columns * math.sin(angle)) * 2 * math.pi / period)
    return 0.5 + 0.5 * along * across


@lru_cache(maxsize=None)
def _photo(name: str) -> Image.Image:
    """Returns a grey image from the package scikit-image, with its contrast stretched."""
    package = find_spec('skimage')
    if package is None:
        raise ModuleNotFoundError('the demo scenes take three textures from scikit-image, which is not '
                                  'installed: pip install scikit-image')
    # The file itself, not skimage.data: importing that pulls in scipy to read one picture.
    with Image.open(Path(package.origin).parent / 'data' / f'{name}.png') as picture:
        grey = np.asarray(picture.convert('L'), np.float64)
    stretched = 127.5 + (grey - grey.mean()) / grey.std() * 55
    return Image.fromarray(np.rint(np.clip(stretched, 0, 255)).astype(np.uint8))
