"""The corruptions: the published numbers, statistics, independence of the run, and images of any size."""
import colorsys
import io
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import TRANSFORMS
from PIL import Image
from scipy import ndimage, stats
from torch.utils.data import DataLoader

from mmlk.datasets import corruptions
from mmlk.datasets.corruptions import CATEGORIES, CORRUPTIONS, SEVERITIES, add_corrupt, corrupt, set_corruption

REPO = Path(__file__).resolve().parent.parent.parent
NOISE = CATEGORIES['noise']


def drawn(height, width):
    """A picture with edges, flat parts, black and white."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([255 * rows // (height - 1), 255 * columns // (width - 1),
                      37 * (rows // 5 + columns // 7) % 256], 2)
    image[height // 4:height // 2, width // 3:width // 2] = 0
    image[height // 2:height * 3 // 4, width // 3:width // 2] = 255
    return image.astype(np.uint8)


@pytest.fixture(scope='module')
def published():
    """Every 12th pixel of what imagecorruptions makes of ``drawn``; tests/data/README.md says how."""
    return np.load(REPO / 'tests' / 'data' / 'corruptions.npz')


def assert_close(found, expected):
    """Equal, but for what a rounding error of the published code cuts off one step lower."""
    difference = found.astype(int) - expected
    assert difference.min() >= 0 and difference.max() <= 1 and difference.mean() < 0.2


@pytest.mark.parametrize('name', ['defocus_blur', 'zoom_blur', 'brightness', 'contrast', 'pixelate'])
def test_what_has_no_random_numbers_equals_the_published_code(name, published):
    for severity in SEVERITIES:
        assert_close(corrupt(drawn(32, 48), name, severity)[::3, ::4], published[name][severity - 1])


def test_motion_equals_the_published_code(published):
    image, angles = drawn(96, 112).astype(np.float32), (-40, -20, 0, 10, 45)
    for expected, angle, (radius, deviation) in zip(published['motion'], angles,
                                                    corruptions._PARAMETERS['motion_blur']):
        assert_close(corruptions._bytes(corruptions._move(image, radius, deviation, angle))[::7, ::8], expected)


def test_motion_keeps_the_brightness_of_small_images():
    """The published code leaves out the part of the motion that is longer than the image."""
    flat = np.full((9, 8, 3), 200, np.uint8)
    assert all((corrupt(flat, 'motion_blur', severity) == 200).all() for severity in SEVERITIES)


def test_brightness_adds_to_the_value_of_hsv():
    image = drawn(12, 16)
    for severity, added in zip(SEVERITIES, (.1, .2, .3, .4, .5)):
        found = corrupt(image, 'brightness', severity).reshape(-1, 3)
        for pixel, brighter in zip(image.reshape(-1, 3), found):
            hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
            expected = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(1, value + added)))
            assert (brighter == np.floor(expected + 1e-4)).all()


def test_contrast_shrinks_towards_the_mean_of_each_channel():
    image = drawn(12, 16)
    mean = image.reshape(-1, 3).mean(0)
    for severity, factor in zip(SEVERITIES, (.4, .3, .2, .1, .05)):
        assert (corrupt(image, 'contrast', severity) == np.floor(mean + factor * (image - mean) + 1e-4)).all()


def test_pixelate_repeats_the_means_of_boxes():
    """A quarter of 8x12 pixels: each box of 4x4 is its mean."""
    image = drawn(8, 12)
    boxes = image.reshape(2, 4, 3, 4, 3).mean((1, 3))
    expected = np.floor(boxes + 0.5).repeat(4, 0).repeat(4, 1)
    assert (corrupt(image, 'pixelate', 5) == expected).all()


def test_jpeg_is_pillows_at_the_published_quality():
    image = drawn(20, 28)
    for severity, quality in zip(SEVERITIES, (25, 18, 15, 10, 7)):
        file = io.BytesIO()
        Image.fromarray(image).save(file, 'JPEG', quality=quality)
        assert (corrupt(image, 'jpeg_compression', severity) == np.asarray(Image.open(file))).all()


def distribution(name, severity, level):
    """The probability of each byte that a pixel of this level becomes."""
    if name == 'gaussian_noise':
        edges = stats.norm.cdf(np.arange(1, 256), level, 255 * (.08, .12, .18, .26, .38)[severity - 1])
        return np.diff(np.concatenate([[0], edges, [1]]))
    probability = np.zeros(256)
    if name == 'shot_noise':
        photons = (60, 25, 12, 5, 3)[severity - 1]
        counts = np.arange(200)
        chances = stats.poisson.pmf(counts, level / 255 * photons)
        np.add.at(probability, np.minimum(255, counts * 255 // photons), chances)
    else:
        share = (.03, .06, .09, .17, .27)[severity - 1]
        probability[[0, 255, level]] = share / 2, share / 2, 1 - share
    return probability


@pytest.mark.parametrize('severity', SEVERITIES)
@pytest.mark.parametrize('name', NOISE)
def test_noise_has_the_published_mean_and_variance(name, severity):
    for level in (40, 128, 220):
        noisy = corrupt(np.full((120, 100, 3), level, np.uint8), name, severity).astype(float)
        probability, values = distribution(name, severity, level), np.arange(256)
        mean = probability @ values
        moments = [probability @ (values - mean)**power for power in (2, 4)]
        assert abs(noisy.mean() - mean) < 5 * (moments[0] / noisy.size)**0.5
        assert abs(noisy.var() - moments[0]) < 5 * ((moments[1] - moments[0]**2) / noisy.size)**0.5
        rows = noisy.reshape(-1, 3).T  # no pixel and no channel depends on another
        assert np.abs(np.corrcoef(np.vstack([rows, np.roll(rows, 1, 1)])) - np.eye(6)).max() < 0.05


def test_glass_takes_neighbours_one_pixel_after_the_other():
    image = np.arange(11 * 9 * 3, dtype=np.uint16).reshape(11, 9, 3)
    random = np.random.default_rng(0)
    for reach in (1, 2, 3, 4, 6):
        size = max(0, 11 - 2 * reach), max(0, 9 - 2 * reach)
        for _ in range(20):
            offsets = random.integers(-reach, reach, (2, *size), np.int32)
            expected = image.copy()
            for row in range(11 - reach, reach, -1):
                for column in range(9 - reach, reach, -1):
                    down, right = offsets[:, row - reach - 1, column - reach - 1]
                    expected[row, column] = expected[row + down, column + right]
            assert (corruptions._take_neighbours(image, offsets, reach) == expected).all()


def test_the_cloud_is_made_by_diamonds_and_squares():
    """Point by point, with the random numbers in the same order."""
    side, decay = 16, 1.7
    random, heights, spread, step = np.random.default_rng(3), np.zeros((side, side)), 100.0, side
    while step > 1:
        half = step // 2
        for down, right, near in ((half, half, ((-half, -half), (-half, half), (half, -half), (half, half))),
                                  (0, half, ((0, -half), (0, half), (-half, 0), (half, 0))),
                                  (half, 0, ((0, -half), (0, half), (-half, 0), (half, 0)))):
            noise = random.uniform(-spread, spread, (side // step, side // step))
            for row in range(side // step):
                for column in range(side // step):
                    y, x = row * step + down, column * step + right
                    mean = np.mean([heights[(y + a) % side, (x + b) % side] for a, b in near])
                    heights[y, x] = mean + spread * noise[row, column]
        step, spread = half, spread / decay
    heights = (heights - heights.min()) / (heights.max() - heights.min())
    found = corruptions._cloud(11, decay, np.random.default_rng(3))
    assert np.abs(found - heights).max() < 1e-5


def test_helpers_equal_those_of_scipy():
    pixels = drawn(24, 17).astype(np.float32)
    for sigma, truncate, border, mode in (((1.5, 1.5), 4, 1, 'nearest'), ((0.3, 0.2), 3, 2, 'reflect')):
        expected = ndimage.gaussian_filter(pixels, (*sigma, 0), mode=mode, truncate=truncate)
        assert np.abs(corruptions._smooth(pixels, sigma, truncate, border) - expected).max() < 1e-3
    for factor in (1, 1.11, 1.3, 3, 4.5):
        height, width = (int(np.ceil(side / factor)) for side in (24, 17))
        top, left = (24 - height) // 2, (17 - width) // 2
        part = pixels[top:top + height, left:left + width]
        expected = ndimage.zoom(part, (factor, factor, 1), order=1)[:24, :17]
        assert np.abs(corruptions._zoom(pixels, factor) - expected).max() < 1e-3


def test_elastic_moves_by_the_published_field():
    """On a ramp, the change is the distance: its deviation follows from that of a smoothed uniform field."""
    height, width = 300, 400
    ramp = np.repeat(np.arange(width)[None, :, None] * 0.5 + 20, height, 0).repeat(3, 2).astype(np.uint8)
    for severity, factor in zip(SEVERITIES, (12.5, 16.25, 21.25, 25, 30)):
        change = (corrupt(ramp, 'elastic_transform', severity).astype(float) - ramp)[40:-40, 40:-40]
        field = 0.005 * height / 3**0.5 * factor / (2 * np.pi**0.5 * 0.01 * (height * width)**0.5)
        assert change.std() == pytest.approx(0.5 * field, rel=0.35) and abs(change.mean()) < 0.6


@pytest.fixture(scope='module')
def photograph():
    from skimage import data
    return np.ascontiguousarray(data.astronaut()[::4, ::4])


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_severity_is_monotone(name, photograph):
    """In the mean difference; in the correlation where severities add light in different shares, as published."""
    def distance(severity, seed):
        one, other = corrupt(photograph, name, severity, seed).astype(float), photograph.astype(float)
        if name in ('snow', 'frost', 'fog'):
            return 1 - np.corrcoef(one.ravel(), other.ravel())[0, 1]
        return np.abs(one - other).mean()

    distances = [np.mean([distance(severity, seed) for seed in range(8)]) for severity in SEVERITIES]
    falls = [severity for severity in SEVERITIES[1:] if distances[severity - 1] <= distances[severity - 2]]
    # the published glass of severity 4 reaches further than that of 3, in two rounds instead of three
    assert set(falls) <= ({4} if name == 'glass_blur' else set()), distances


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_random_numbers_depend_on_seed_severity_and_image_alone(name):
    image, state = drawn(40, 50), np.random.get_state()[1].copy()
    found = corrupt(image, name, 3, 5)
    np.random.rand(7)
    assert (corrupt(image.copy(), name, 3, 5) == found).all()
    np.random.set_state(('MT19937', state, 624))
    others = [corrupt(image, name, 3, seed) for seed in (0, 1, 2)]
    drawn_anew = {*NOISE, 'glass_blur', 'motion_blur', 'snow', 'frost', 'fog', 'elastic_transform'}
    assert any((other != found).any() for other in others) is (name in drawn_anew)
    assert (image == drawn(40, 50)).all()


def test_a_transform_of_what_does_not_exist_is_not_built():
    with pytest.raises(ValueError, match="there is no corruption 'rain'"):
        TRANSFORMS.build(dict(type='mmlk.Corrupt', corruption='rain'))
    with pytest.raises(ValueError, match='severity must be 1 to 5, got 6'):
        TRANSFORMS.build(dict(type='mmlk.Corrupt', corruption='fog', severity=6))


def test_two_images_have_different_noise():
    one, other = np.full((20, 20, 3), 100, np.uint8), np.full((20, 20, 3), 101, np.uint8)
    noise = [corrupt(image, 'gaussian_noise', 1).astype(int) - image for image in (one, other)]
    assert np.abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.15


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (2, 3), (7, 5), (33, 20), (64, 150)])
def test_images_of_any_size(size):
    image = np.random.RandomState(0).randint(0, 256, (*size, 3)).astype(np.uint8)
    for name in CORRUPTIONS:
        for severity in (1, 3, 5):
            found = corrupt(image, name, severity)
            assert found.shape == image.shape and found.dtype == np.uint8, (name, severity)
    assert (corrupt(np.zeros((*size, 3), np.uint8), 'fog', 1) == 0).all()  # scaled by the brightest pixel


def test_ice_is_bright_uneven_and_bluish():
    ice = corruptions.draw_ice(300, 260, np.random.default_rng(0))
    assert ice.min() >= 0 and ice.max() <= 255 and 20 < ice.std() < 40
    assert ice[..., 0].mean() < ice[..., 1].mean() < ice[..., 2].mean() and abs(ice.mean() - 164) < 3


@pytest.mark.parametrize('change, message', [
    (dict(corruption='rain'), "there is no corruption 'rain'; there are gaussian_noise, shot_noise, "),
    (dict(severity=0), 'severity must be 1 to 5, got 0'),
    (dict(image=np.zeros((4, 5, 4), np.uint8)), '8-bit images of three channels, shape (H, W, 3), got uint8 of shape '
     '(4, 5, 4)'),
    (dict(image=np.zeros((4, 5, 3), np.float32)), 'got float32 of shape (4, 5, 3)')])
def test_refused(change, message):
    with pytest.raises(ValueError) as error:
        corrupt(**{**dict(image=np.zeros((4, 5, 3), np.uint8), corruption='fog', severity=1), **change})
    assert message in str(error.value)


class Images(BaseDataset):
    """The images of a folder."""

    def load_data_list(self):
        return [dict(img_path=str(path)) for path in sorted(Path(self.data_root).iterdir())]


def test_workers_and_order_do_not_matter(tmp_path):
    """Pixels are blue first in a pipeline, and the corruption is set for workers that start afterwards."""
    for index in range(5):
        Image.fromarray(np.roll(drawn(24, 30), 3 * index, 1)).save(tmp_path / f'{index}.png')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='mmlk.Corrupt', seed=4)]
    dataset = Images(data_root=str(tmp_path), pipeline=pipeline)

    def load(order, workers):
        loader = DataLoader(dataset, batch_size=1, sampler=order, num_workers=workers, collate_fn=lambda batch: batch)
        return {batch[0]['sample_idx']: batch[0]['img'][..., ::-1] for batch in loader}

    clean = load(range(5), 0)
    assert all((clean[index] == np.roll(drawn(24, 30), 3 * index, 1)).all() for index in clean)
    with pytest.raises(ValueError, match='got uint8 of shape .24, 30.'):
        dataset.pipeline.transforms[1]({'img': clean[0][..., 0]})  # of a clean test, too
    set_corruption(dataset, 'snow', 2)
    one = load(range(5), 0)
    other = {**load([4, 0], 1), **load([3, 2, 1], 2)}
    for index in range(5):
        assert (one[index] == corrupt(clean[index], 'snow', 2, 4)).all() and (other[index] == one[index]).all()


@pytest.mark.parametrize('config', ['upernet_replknet-tiny_ade20k', 'mask_rcnn_replknet-tiny_coco',
                                    'replknet-tiny_imagenet'])
def test_images_are_corrupted_right_after_they_were_loaded(config):
    cfg = Config.fromfile(REPO / 'configs' / 'demo' / f'{config}.py')
    cfg.test_dataloader.persistent_workers = True
    before = list(cfg.test_dataloader.dataset.pipeline)
    add_corrupt(cfg, 7)
    pipeline = cfg.test_dataloader.dataset.pipeline
    assert pipeline[:2] == [before[0], dict(type='mmlk.Corrupt', seed=7)] and pipeline[2:] == before[1:]
    assert type(TRANSFORMS.build(pipeline[1])).__name__ == 'Corrupt' and not cfg.test_dataloader.persistent_workers
    assert cfg.train_dataloader.dataset.pipeline == Config.fromfile(cfg.filename).train_dataloader.dataset.pipeline
    with pytest.raises(ValueError, match='test_dataloader.dataset.pipeline corrupts images already'):
        add_corrupt(cfg)
    cfg.test_dataloader.dataset.pipeline = before[1:]
    with pytest.raises(ValueError, match=r'after LoadImageFromFile, and test_dataloader.dataset.pipeline has none'):
        add_corrupt(cfg)
