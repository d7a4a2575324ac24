import math

import numpy as np
import pytest

from mmlk.datasets import scenes
from mmlk.datasets.scenes import BAR_WIDTH, CLASSES, MIN_VISIBLE, PALETTE, RING_HOLE, draw, shape_distance

SIZE = (128, 160)
SHAPES = CLASSES[1:]


@pytest.fixture(scope='module')
def drawn():
    """By split, (scene, object) of its first scenes."""
    return {split: [(scene, thing) for scene in (draw(7, split, index, SIZE) for index in range(count))
                    for thing in scene.objects]
            for split, count in (('train', 160), ('val', 60))}


def test_a_scene_depends_on_its_own_seed_split_and_index_alone():
    first = draw(3, 'train', 5, SIZE)
    np.random.seed(0)
    draw(3, 'train', 4, SIZE)
    again = draw(3, 'train', 5, SIZE)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    for other in (draw(4, 'train', 5, SIZE), draw(3, 'val', 5, SIZE), draw(3, 'train', 6, SIZE)):
        assert (first.image != other.image).mean() > 0.5


@pytest.mark.parametrize('size', [(32, 32), (97, 211), (256, 192)])
def test_labels_are_those_of_the_objects_in_sight(size):
    scene = draw(0, 'val', 0, size)
    assert scene.image.shape == (*size, 3) and scene.image.dtype == np.uint8
    assert scene.labels.shape == size and scene.labels.dtype == np.uint8
    expected = np.zeros(size, np.uint8)
    times_covered = np.zeros(size, int)
    for thing in scene.objects:
        expected[thing.mask] = thing.label
        times_covered += thing.mask
    np.testing.assert_array_equal(scene.labels, expected)
    assert times_covered.max() == 1


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="split is 'test'"):
        draw(0, 'test', 0, SIZE)
    with pytest.raises(ValueError, match='32 pixels'):
        draw(0, 'train', 0, (31, 64))
    with pytest.raises(ValueError, match="shape is 'ground'"):
        shape_distance('ground', np.zeros(1), np.zeros(1), 10)
    assert len(PALETTE) == len(CLASSES) == len(set(PALETTE))


@pytest.mark.parametrize('name, area', [
    ('disc', math.pi / 4),
    ('ring', math.pi / 4 * (1 - RING_HOLE ** 2)),
    ('square', 0.85 ** 2),
    ('bar', BAR_WIDTH),
    ('cross', 2 * BAR_WIDTH - BAR_WIDTH ** 2),
])
def test_shapes_have_the_area_of_their_formula_and_measure_distance(name, area):
    extent, step = 100., 0.25
    y, x = np.mgrid[-80:80:step, -80:80:step] + step / 2
    distance = shape_distance(name, x, y, extent)
    assert (distance < 0).sum() * step ** 2 == pytest.approx(area * extent ** 2, rel=0.005)
    # A distance changes by one pixel per pixel, but for the ridges where two edges are equally far.
    slope = np.hypot(*np.gradient(distance, step))
    assert (np.abs(slope - 1) < 0.01).mean() > 0.95


def test_every_object_stays_in_sight(monkeypatch):
    whole = []

    def placed(*args):
        distance = place(*args)
        if distance is not None:
            whole.append(distance < 0)
        return distance

    place = scenes._place
    monkeypatch.setattr(scenes, '_place', placed)
    hidden = 0
    for index in range(60):
        whole.clear()
        things = draw(7, 'train', index, SIZE).objects
        assert len(things) == len(whole) >= 1
        for thing, mask in zip(things, whole):
            assert not (thing.mask & ~mask).any()
            assert thing.mask.sum() >= MIN_VISIBLE * mask.sum()
            hidden += (thing.mask != mask).any()
    assert hidden > 20  # and objects do overlap


def test_classes_are_drawn_evenly_and_colour_says_nothing_about_them(drawn):
    things = drawn['train'] + drawn['val']
    labels = np.array([thing.label for _, thing in things])
    share = np.bincount(labels, minlength=len(CLASSES))[1:] / len(labels)
    assert share.min() > 0.14 and share.max() < 0.26

    colour = np.array([scene.image[thing.mask].reshape(-1, 3).mean(0) for scene, thing in things])
    spread = np.array([scene.image[thing.mask].reshape(-1, 3).std(0) for scene, thing in things])
    for feature in np.concatenate([colour, spread], 1).T:
        between = sum((labels == label).sum() * (feature[labels == label].mean() - feature.mean()) ** 2
                      for label in range(1, len(CLASSES)))
        # The part of the variance that the class explains; by chance alone about 4 / 550.
        assert between / ((feature - feature.mean()) ** 2).sum() < 0.025


def local_patches(things, side=9, per_object=6):
    """Pixels of small windows inside objects, with colour and contrast summed up beside them."""
    rng = np.random.default_rng(0)
    features, labels = [], []
    for scene, thing in things:
        filled = np.lib.stride_tricks.sliding_window_view(thing.mask, (side, side)).all((2, 3))
        places = np.argwhere(filled)
        for top, left in places[rng.integers(0, len(places), per_object)]:
            patch = scene.image[top:top + side, left:left + side] / 255
            features.append(np.concatenate([patch.mean((0, 1)), patch.std((0, 1)), patch.ravel()]))
            labels.append(thing.label)
    return np.array(features), np.array(labels)


def edge_patches(things, side=9, per_object=6):
    """The true outline, as an ideal segmenter would see it, in small windows on an object's edge."""
    rng = np.random.default_rng(0)
    features, labels = [], []
    for _, thing in things:
        windows = np.lib.stride_tricks.sliding_window_view(thing.mask, (side, side))
        covered = windows.mean((2, 3))
        places = np.argwhere((covered > 0.3) & (covered < 0.7))
        for top, left in places[rng.integers(0, len(places), per_object)]:
            features.append(windows[top, left].ravel().astype(float))
            labels.append(thing.label)
    return np.array(features), np.array(labels)


def whole_shapes(things):
    """A few numbers about a whole visible mask that do not change as it is turned, moved or scaled."""
    features, labels = [], []
    for _, thing in things:
        offset = np.argwhere(thing.mask) - np.argwhere(thing.mask).mean(0)
        radius = np.hypot(*offset.T)
        narrow, wide = np.linalg.eigvalsh(np.cov(offset.T))
        rings = np.histogram(radius / radius.max(), 6, (0, 1))[0] / len(radius)
        features.append([*rings, math.sqrt(narrow / wide), len(radius) / radius.max() ** 2])
        labels.append(thing.label)
    return np.array(features), np.array(labels)


def neighbours_accuracy(drawn, describe, neighbours):
    """Of a vote among the nearest training samples, on val scenes; and of guessing the commonest class."""
    (known, known_labels), (asked, asked_labels) = describe(drawn['train']), describe(drawn['val'])
    scale = known.std(0) + 1e-6
    known, asked = known / scale, asked / scale
    distance = (asked ** 2).sum(1)[:, None] + (known ** 2).sum(1) - 2 * asked @ known.T
    nearest = known_labels[np.argpartition(distance, neighbours, 1)[:, :neighbours]]
    votes = np.stack([(nearest == label).sum(1) for label in range(1, len(CLASSES))], 1)
    accuracy = (votes.argmax(1) + 1 == asked_labels).mean()
    return accuracy, np.bincount(asked_labels).max() / len(asked_labels)


def test_the_class_is_not_in_local_patches_but_in_the_whole_shape(drawn):
    inside, commonest = neighbours_accuracy(drawn, local_patches, 25)
    assert inside < commonest + 0.05
    edge, commonest = neighbours_accuracy(drawn, edge_patches, 25)
    assert edge < commonest + 0.10
    whole, commonest = neighbours_accuracy(drawn, whole_shapes, 5)
    assert whole > 0.9 > 3 * commonest
