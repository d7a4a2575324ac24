"""Whether a difference of accuracy is real: intervals over images and over seeds, and comparisons of several models.

What an interval covers depends on what was repeated.

- **Over images**: the trained networks are held fixed, and other test images could have been drawn from where these
  come from. It is a paired bootstrap: both models are given the same images. It does not cover another training.
- **Over seeds**: the test images are held fixed, and the models could have been trained with other seeds. It is
  Welch's t interval, because a bootstrap of two or three values is far too narrow. It does not cover other images.
- **Over both**: other seeds and other images.

None covers other training data, another schedule, or settings that suit one model better than the other. Images that
resemble each other, as the frames of a video do, make the interval over images too narrow.
"""
from dataclasses import dataclass
from typing import Callable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, TypeVar

import numpy as np
from scipy import stats

from mmlk.evaluation.per_image import PerImage

FIGURES = TypeVar('FIGURES', bound=PerImage)
LEVEL = 0.95
RESAMPLES = 2000
#: Images that an interval over images needs: a bootstrap of three that all have one sign would be certain.
FEWEST = 20
_NUMBERS = 1 << 21  # weights in memory at a time


@dataclass
class Accuracies:
    """Accuracies of one model, which was trained S times.

    Args:
        values: S accuracies of the whole test.
        resampled: (S, R), float64: the accuracies in R resamples of the images, the same for all models; None if the
            figures of the images are not known.
        images: Number of images, if these are known.
    """
    values: Sequence[float]
    resampled: Optional[np.ndarray] = None
    images: int = 0


class Interval(NamedTuple):
    """The confidence interval of a difference.

    Args:
        low: Its lower end.
        high: Its upper end.
        over: What it covers: 'images', 'seeds' or both.
    """
    low: float
    high: float
    over: Tuple[str, ...]


class Ranking(NamedTuple):
    """How far two rankings agree.

    Args:
        tau: Kendall's tau-b: 1 for the same order, -1 for the reverse.
        p: Probability of at least this agreement or disagreement if the orders have nothing to do with each other.
        models: The number of models in both.
    """
    tau: float
    p: float
    models: int


def draw_images(images: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields blocks of (r, images), float64: how often each image is drawn in each of r resamples with replacement.

    Together the blocks have ``resamples`` rows. They are the same in every call with the same arguments.
    """
    rng = np.random.default_rng(seed)
    step = max(1, _NUMBERS // images)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        yield rng.multinomial(images, np.full(images, 1 / images), rows).astype(np.float64)


def over_images(figures: Sequence[FIGURES], accuracy: Callable[[FIGURES, np.ndarray], np.ndarray],
                resamples: int = RESAMPLES) -> Accuracies:
    """Returns the accuracies of the trainings of one model in resamples of the images.

    Args:
        figures: Of each training, of the same images in the same order.
        accuracy: :func:`mmlk.evaluation.accuracies.mean_iou` or :func:`~mmlk.evaluation.accuracies.average_precision`.
        resamples: Number of resamples.
    """
    images = len(figures[0].images)
    whole = [float(accuracy(one, np.ones((1, images)))[0]) for one in figures]
    blocks = [np.stack([accuracy(one, weights) for one in figures]) for weights in draw_images(images, resamples)]
    return Accuracies(whole, np.concatenate(blocks, axis=1), images)


def interval(first: Accuracies, second: Accuracies, level: float = LEVEL) -> Optional[Interval]:
    """Returns the confidence interval of the accuracy of ``second`` minus that of ``first``, each the mean over its
    trainings.

    Over images it is the percentile interval of the bootstrap, at a level that is corrected for the number of images.
    With several trainings of both models, half of Welch's interval over seeds is added to each of its sides in
    quadrature. The trainings differ by chance on other images, too, so a part of their spread is in the interval over
    images already. This part is estimated from the resamples and taken out of the interval over seeds.

    Args:
        first: The model that the other is compared with.
        second: The other model.
        level: Probability with which the interval covers the true difference.

    Returns:
        The interval; None if neither the figures of at least ``FEWEST`` images nor a spread over seeds are known.
    """
    ends, over, _ = _ends(first, second)
    return Interval(*ends(1 - level), over) if over else None


def p_value(first: Accuracies, second: Accuracies) -> Optional[float]:
    """Returns the smallest significance level, 1 minus ``level``, at which :func:`interval` does not contain 0, and at
    least twice the share of one resample; None if there is no interval."""
    ends, over, least = _ends(first, second)
    if not over:
        return None
    low, high = -12.0, 0.0  # its decimal logarithm is between them
    for _ in range(24):
        middle = (low + high) / 2
        lower, upper = ends(10**middle)
        low, high = (middle, high) if lower <= 0 <= upper else (low, middle)
    return max(least, 10**high)


def _ends(first: Accuracies, second: Accuracies) -> Tuple[Callable[[float], Tuple[float, float]], Tuple[str, ...],
                                                          float]:
    """Returns a function of the significance level that computes the ends of the interval, what the interval covers,
    and the smallest significance level that the number of resamples can tell from 0."""
    value = float(np.mean(second.values) - np.mean(first.values))
    draws = _difference_of_resamples(first, second)
    seeds = _over_seeds(first, second)

    def ends(alpha: float) -> Tuple[float, float]:
        below = above = 0.0
        if draws is not None:
            widening = (first.images / (first.images - 1))**0.5  # a bootstrap's variance has the divisor n
            tail = stats.norm.cdf(stats.t.ppf(alpha / 2, first.images - 1) * widening)
            low, high = np.quantile(draws, [tail, 1 - tail])
            if seeds is None:
                return float(low), float(high)
            below, above = max(0.0, value - low), max(0.0, high - value)
        half = stats.t.isf(alpha / 2, seeds[1]) * seeds[0]
        return value - float(np.hypot(below, half)), value + float(np.hypot(above, half))

    over = tuple(name for name, known in (('images', draws), ('seeds', seeds)) if known is not None)
    return ends, over, 0.0 if draws is None else 2 / (len(draws) + 1)


def holm(values: Sequence[float]) -> List[float]:
    """Returns the p-values of several comparisons corrected by Holm's method: if those below 0.05 are called
    differences, the probability that any of them is none is at most 0.05."""
    order = np.argsort(values, kind='stable')
    factors = np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(np.asarray(values, np.float64)[order] * factors))
    return corrected.tolist()


def kendall(first: Mapping[str, float], second: Mapping[str, float]) -> Optional[Ranking]:
    """Returns Kendall's tau of two rankings, of the models that both have; None for fewer than three models, or if all
    are equal in one of them.

    Args:
        first: Accuracies by the name of the model.
        second: Others, as published ones.
    """
    names = [name for name in first if name in second]
    if len(names) < 3:
        return None
    found = stats.kendalltau([first[name] for name in names], [second[name] for name in names])
    return None if np.isnan(found.statistic) else Ranking(float(found.statistic), float(found.pvalue), len(names))


def standard_error(groups: Sequence[Sequence[float]], weights: Sequence[float]) -> Tuple[float, float]:
    """Returns the standard error of a weighted sum of the means of independent groups, and its degrees of freedom, as
    Welch's t-test has them.

    Args:
        groups: Of at least two values each.
        weights: One for each group.
    """
    parts = [weight**2 * np.var(values, ddof=1) / len(values) for values, weight in zip(groups, weights)]
    total = float(sum(parts))
    freedom = total**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, groups)) if total else 1.0
    return float(np.sqrt(total)), float(freedom)


def _difference_of_resamples(first: Accuracies, second: Accuracies) -> Optional[np.ndarray]:
    """Returns the difference in each resample in which both models have an accuracy; None if it is not known."""
    if first.resampled is None or second.resampled is None or first.images < FEWEST:
        return None
    draws = second.resampled.mean(axis=0) - first.resampled.mean(axis=0)
    draws = draws[np.isfinite(draws)]
    return draws if len(draws) else None


def _over_seeds(first: Accuracies, second: Accuracies) -> Optional[Tuple[float, float]]:
    """Returns the standard error of the difference over seeds and its degrees of freedom, by Welch and Satterthwaite.

    None if a model was trained once, or if no training differs from another, which says nothing about others.
    """
    if min(len(first.values), len(second.values)) < 2:
        return None
    error, freedom = standard_error([first.values, second.values], [-1, 1])
    if not error:
        return None
    both = first.resampled is not None and second.resampled is not None
    of_images = sum(map(_spread_by_images, (first, second))) if both else 0.0
    return float(np.sqrt(max(0.0, error**2 - of_images))), freedom


def _spread_by_images(one: Accuracies) -> float:
    """Returns the variance of the mean over trainings that is due to each training being better on other images."""
    moved = one.resampled - np.asarray(one.values)[:, None]
    moved = moved[:, np.isfinite(moved).all(axis=0)]
    return float(moved.var(axis=0, ddof=1).mean() / len(one.values)) if moved.size else 0.0
