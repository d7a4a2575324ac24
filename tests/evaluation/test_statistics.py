"""Intervals of differences: what they cover in simulated comparisons whose true difference is known."""
import functools

import numpy as np
import pytest
from scipy import stats

from mmlk.evaluation import statistics
from mmlk.evaluation.accuracies import average_precision, mean_iou
from mmlk.evaluation.per_image import DetectionFigures, SegmentationFigures
from mmlk.evaluation.statistics import Accuracies, draw_images, holm, interval, kendall, over_images, p_value

CLASSES = 6


def networks(rng, images, offsets):
    """The figures of two models, each trained several times, on the same images: some images are harder for every
    network, some for one model, and some for one training. The second model is better. ``offsets`` say how much better
    than its mean each training is, (2, seeds)."""
    present = rng.random((images, CLASSES)) < np.linspace(1, 0.3, CLASSES)
    share = rng.gamma(1.5, size=(images, CLASSES)) * present
    labelled = np.floor(10000 * share / np.maximum(share.sum(1, keepdims=True), 1e-9)).astype(np.int64)
    hard = rng.normal(0, 0.8, (images, 1)) + rng.normal(0, 0.8, (images, CLASSES))
    names = [str(index) for index in range(images)], [str(index) for index in range(CLASSES)]
    made = []
    for model in range(2):
        of_model = np.linspace(2, 0.5, CLASSES) + 0.2 * model + hard + rng.normal(0, 0.4, (images, CLASSES))
        made.append([])
        for offset in offsets[model]:
            logit = of_model + offset + rng.normal(0, 0.5, (images, CLASSES))
            inside = np.rint(labelled / (1 + np.exp(-logit))).astype(np.int64)
            elsewhere = rng.gamma(0.7, size=(images, CLASSES))
            elsewhere /= elsewhere.sum(1, keepdims=True)
            wrong = (labelled - inside).sum(1, keepdims=True)
            made[-1].append(SegmentationFigures(*names, inside, inside + np.rint(wrong * elsewhere).astype(np.int64),
                                                labelled))
    return made


@functools.lru_cache
def truth(of_seed):
    """The difference of the two models' mean IoU over many images and trainings."""
    offsets = of_seed * stats.norm.ppf((np.arange(15) + 0.5) / 15)
    models = networks(np.random.default_rng(1), 20000, [offsets, offsets])
    first, second = (np.mean([mean_iou(one, np.ones((1, 20000)))[0] for one in model]) for model in models)
    return second - first


def coverage(pairs, seeds, of_seed, images=100, resamples=400):
    """How often the interval contains the true difference."""
    true, rng, inside = truth(of_seed), np.random.default_rng(0), 0
    for _ in range(pairs):
        models = networks(rng, images, rng.normal(0, of_seed, (2, seeds)))
        found = interval(*(over_images(model, mean_iou, resamples) for model in models))
        assert found.over == (('images', 'seeds') if seeds > 1 else ('images', ))
        inside += found.low <= true <= found.high
    return inside / pairs


def test_the_interval_over_images_covers_the_truth():
    assert 0.92 <= coverage(200, 1, 0.0) <= 0.98


@pytest.mark.parametrize('seeds', [2, 3, 5])
def test_the_interval_over_images_and_seeds_covers_the_truth(seeds):
    assert 0.92 <= coverage(200, seeds, 0.08) <= 0.98


@pytest.mark.parametrize('spread', [1, 3])
@pytest.mark.parametrize('seeds', [2, 3, 5])
def test_the_interval_over_seeds_covers_the_truth(seeds, spread):
    """Of trainings alone, where no figures of images are known; the second model may vary more than the first."""
    rng, pairs, inside = np.random.default_rng(0), 1000, 0
    for first, second in zip(rng.normal(40, 1, (pairs, seeds)), rng.normal(41.5, spread, (pairs, seeds))):
        found = interval(Accuracies(first), Accuracies(second))
        assert found.over == ('seeds', )
        inside += found.low <= 1.5 <= found.high
    assert 0.92 <= inside / pairs <= 0.98


def test_the_interval_over_seeds_is_welchs():
    first, second = [40.0, 41.5, 40.7], [42.0, 44.9, 42.2, 43.0]
    found = interval(Accuracies(first), Accuracies(second), 0.9)
    expected = stats.ttest_ind(second, first, equal_var=False)
    assert found[:2] == pytest.approx(tuple(expected.confidence_interval(0.9)), rel=1e-9)
    assert p_value(Accuracies(first), Accuracies(second)) == pytest.approx(expected.pvalue, rel=1e-4)


def test_the_interval_over_images_is_the_percentiles_of_the_paired_bootstrap():
    """For many images the correction for their number is small: against scipy's bootstrap of a mean of differences."""
    rng = np.random.default_rng(0)
    labelled = np.full((400, 1), 1000)
    inside = [rng.integers(300, 900, (400, 1))]
    inside.append(np.minimum(1000, inside[0] + rng.integers(-100, 160, (400, 1))))
    first, second = ([SegmentationFigures([''] * 400, ['a'], one, one, labelled)] for one in inside)
    found = interval(over_images(first, mean_iou, 4000), over_images(second, mean_iou, 4000))
    expected = stats.bootstrap(((inside[1] - inside[0]).ravel() / 10, ), np.mean, method='percentile', n_resamples=4000,
                               rng=rng).confidence_interval
    assert found[:2] == pytest.approx(tuple(expected), abs=0.05 * (expected.high - expected.low))


def detectors(rng, images=40, objects=4):
    """Figures of two detectors of one class, at two thresholds of IoU: objects of some images are harder to find for
    both, right predictions have higher scores, and the second detector finds more."""
    hard = rng.normal(0, 1, (images, 1))
    made = []
    for better in (0, 0.4):
        chance = 1 / (1 + np.exp(-(1 + better + hard + rng.normal(0, 0.5, (images, objects)))))
        loose = rng.random((images, objects)) < chance
        matched = np.stack([loose, loose & (rng.random((images, objects)) < 0.7)], -1).reshape(1, -1, 2)
        made.append(DetectionFigures(
            [str(index) for index in range(images)], ['a'], ['all'], np.array([0.5, 0.75]),
            np.full((1, images, 1), objects), np.repeat(np.arange(images), objects),
            np.zeros(images * objects, np.int64), rng.random(images * objects) + 0.4 * loose.ravel(), matched,
            np.zeros_like(matched)))
    return made


def test_the_interval_of_average_precision_covers_the_truth():
    many = detectors(np.random.default_rng(1), 40000)
    first, second = (average_precision(one, np.ones((1, 40000)))[0] for one in many)
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        found = interval(*(over_images([one], average_precision, 300) for one in detectors(rng, 60)))
        inside += found.low <= second - first <= found.high
    assert second - first > 3 and 0.92 <= inside / 200 <= 0.98


@pytest.mark.parametrize('accuracy, figures', [
    (mean_iou, networks(np.random.default_rng(0), 30, np.zeros((2, 1)))[0]),
    (average_precision, detectors(np.random.default_rng(0))[:1])])
def test_the_same_checkpoint_twice_does_not_differ(accuracy, figures):
    first, second = over_images(figures, accuracy, 200), over_images(figures, accuracy, 200)
    assert first.resampled.std() > 0 and (first.resampled == second.resampled).all()
    assert interval(first, second) == (0, 0, ('images', )) and p_value(first, second) == 1
    twice = over_images([*figures, *figures], accuracy, 200)  # and its trainings do not differ, which says nothing
    assert interval(twice, twice) == (0, 0, ('images', ))


def test_resamples_are_the_same_for_every_model_and_in_blocks(monkeypatch):
    whole, = draw_images(7, 50)
    assert whole.shape == (50, 7) and (whole.sum(1) == 7).all() and whole.std(0).min() > 0
    monkeypatch.setattr(statistics, '_NUMBERS', 70)
    blocks = list(draw_images(7, 50))
    assert [len(block) for block in blocks] == [10] * 5 and (np.concatenate(blocks) == whole).all()


def test_without_images_and_seeds_there_is_no_interval():
    once, twice = Accuracies([40.0]), Accuracies([40.0, 41.0])
    assert interval(once, twice) is None and p_value(twice, once) is None
    assert interval(Accuracies([40.0, 40.0]), Accuracies([41.0, 41.0])) is None  # no spread: says nothing


def test_an_interval_excludes_0_at_the_levels_from_its_p_value_on():
    rng = np.random.default_rng(3)
    first, second = (over_images(model, mean_iou, 500) for model in networks(rng, 60, rng.normal(0, 0.08, (2, 3))))
    p = p_value(first, second)
    assert 0.001 < p < 0.5
    for level, contains in ((1 - 0.9 * p, True), (1 - 1.1 * p, False)):
        found = interval(first, second, level)
        assert (found.low <= 0 <= found.high) is contains


def test_holm_is_holms():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # of Holm's definition, by hand
    assert holm([0.6, 0.6]) == [1, 1] and holm([0.2]) == [0.2] and holm([]) == []
    rng, any_wrong = np.random.default_rng(0), 0
    for _ in range(2000):
        any_wrong += min(holm(rng.random(6).tolist())) < 0.05
    assert any_wrong / 2000 == pytest.approx(0.05, abs=0.015)


def test_kendalls_tau_is_of_the_models_in_both_rankings():
    first = dict(a=1.0, b=2.0, c=3.0, d=4.0, only=9.0)
    found = kendall(first, dict(b=20.0, a=10.0, d=30.0, c=40.0, other=0.0))
    assert (found.tau, found.models) == (pytest.approx(4 / 6), 4)  # five pairs agree, one does not
    assert found.p == pytest.approx(2 * 4 / 24)  # of 24 orders, 4 have at least five pairs in order
    assert kendall(first, dict(a=1.0, b=2.0)) is None and kendall(first, dict(a=1.0, b=1.0, c=1.0)) is None
