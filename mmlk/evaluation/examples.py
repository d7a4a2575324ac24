"""The images of a test with the lowest and the highest scores, kept while it runs."""
import bisect
import math
from dataclasses import dataclass
from typing import Any, Callable, Iterable, List, Tuple

NUMBER = 4  #: How many images are kept of each kind.


@dataclass
class Example:
    """An image with what is to be drawn of it.

    Args:
        path: Of the image's file.
        score: Of the prediction, 0 to 1.
        size: Height and width of the image in pixels.
        truth: The ground truth, in the form that the metric keeps.
        prediction: The prediction, in the same form.
    """
    path: str
    score: float
    size: Tuple[int, int]
    truth: Any
    prediction: Any


class Examples:
    """Keeps the images with the lowest and the highest scores. Of equal scores, that of the earlier image is lower."""

    def __init__(self) -> None:
        self._lowest: List[Tuple[float, int, Example]] = []
        self._highest: List[Tuple[float, int, Example]] = []

    def add(self, score: float, position: int, example: Callable[[], Example]) -> None:
        """Adds an image.

        Args:
            score: Its score. An image whose score is nan is not kept.
            position: Its position in the dataset.
            example: Makes what is kept of the image; called only if it is kept.
        """
        made = None
        for kept, key in ((self._lowest, (score, position)), (self._highest, (-score, -position))):
            if not math.isnan(score) and (len(kept) < NUMBER or key < kept[-1][:2]):
                made = made or example()
                bisect.insort(kept, (*key, made))
                del kept[NUMBER:]

    def choose(self, others: Iterable['Examples'] = ()) -> Tuple[List[Example], List[Example]]:
        """Returns the worst images, the worst one first, and the best ones, the best one first.

        No image is in both: of few images, the lower half are the worst.

        Args:
            others: What other processes kept.
        """
        every = {abs(position): example for examples in (self, *others)
                 for _, position, example in (*examples._lowest, *examples._highest)}
        ranked = [every[position] for position in sorted(every, key=lambda place: (every[place].score, place))]
        lower = min(NUMBER, (len(ranked) + 1) // 2)
        return ranked[:lower], ranked[:lower - 1:-1][:NUMBER] if ranked else []
