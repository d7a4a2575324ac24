"""A metric that sums over the images of all processes, each image once."""
from typing import Any, List, Sequence

from mmengine.dist import collect_results, get_rank, get_world_size
from mmengine.evaluator import BaseMetric


class SummingMetric(BaseMetric):
    """A metric that keeps a few figures of each image, and sums over images.

    The data loader gives some images twice if their number is not a multiple of that of the processes. mmengine drops
    these from the results of the images, but a sum would contain them; :meth:`add` is told which they are.

    Args:
        size: Number of images of the dataset.

    Attributes:
        sums: Sums of this process, an object that can be pickled.
    """

    default_prefix = 'report'  # mmengine warns of a metric without one

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.sums: Any = self.zero()

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Adds the images of a batch."""
        for sample in data_samples:
            position = len(self.results) * get_world_size() + get_rank()  # the order of mmengine's sampler
            self.results.append(self.add(sample, position, position < self.size))

    def evaluate(self, size: int) -> dict:
        """Collects the sums of all processes, and evaluates as mmengine does."""
        self.gathered: List[Any] = collect_results([self.sums], get_world_size(), 'cpu') or []
        metrics = super().evaluate(size)
        self.sums, self.gathered = self.zero(), []
        return metrics

    def zero(self) -> Any:
        """Returns sums over no image."""
        raise NotImplementedError

    def add(self, sample: dict, position: int, first: bool) -> Any:
        """Computes the figures of an image.

        Args:
            sample: Of the toolbox, with prediction and ground truth.
            position: Of the image in the dataset.
            first: Whether to add it to ``sums``; not if another process has it already.

        Returns:
            What ``compute_metrics`` gets of this image, in the order of the dataset.
        """
        raise NotImplementedError
