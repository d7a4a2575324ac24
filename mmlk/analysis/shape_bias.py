"""Shape bias: whether a classifier decides by the shape of things or by their texture.

Images with the shape of one category and the texture of another (ImageNet-trained CNNs are biased towards texture,
Geirhos et al., ICLR 2019, arXiv:1811.12231), and the procedure of ``bethgelab/model-vs-human`` (MIT; Partial success in
closing the gap between human and machine vision, Geirhos et al., NeurIPS 2021, arXiv:2106.07411):

- the probability of a category is the mean of those of its classes of ImageNet-1K, and the largest decides;
- images whose shape and texture are of one category are left out;
- the bias is the share of decisions for the shape among decisions for the shape or the texture; that of a category is
  of the images with its shape, and the overall one counts decisions, not categories.
"""
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from mmlk._text import markdown_table
from mmlk.datasets.images import SUFFIXES, open_image, to_tensor

from .classifiers import CLASSES, Classifier
from .palette import legend_columns, looks, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _indices(text: str) -> Tuple[int, ...]:
    """'8, 10-12' is (8, 10, 11, 12)."""
    ends = [[int(end) for end in part.split('-')] for part in text.split(', ')]
    return tuple(index for first, *last in ends for index in range(first, (last or [first])[0] + 1))


# Indices of ImageNet-1K; model-vs-human, modelvshuman/helper/human_categories.py.
CATEGORIES: Dict[str, Tuple[int, ...]] = {name: _indices(indices) for name, indices in dict(
    airplane='404',
    bear='294-297',
    bicycle='444, 671',
    bird='8, 10-16, 18-20, 22-24, 80-83, 87-96, 98-100, 127-133, 135-145',
    boat='472, 554, 625, 814, 914',
    bottle='440, 720, 737, 898-899, 901, 907',
    car='436, 511, 817',
    cat='281-286',
    chair='423, 559, 765, 857',
    clock='409, 530, 892',
    dog='152-191, 193-203, 205-226, 228-241, 243-250, 252-257, 259, 261-263, 265-268',
    elephant='385-386',
    keyboard='508, 878',
    knife='499',
    oven='766',
    truck='555, 569, 656, 675, 717, 734, 864, 867',
).items()}


@dataclass
class Counts:
    """Decisions for the shape, for the texture, and for neither."""
    shape: int = 0
    texture: int = 0
    neither: int = 0

    @property
    def bias(self) -> Optional[float]:
        """None where nothing was decided for shape or texture."""
        decided = self.shape + self.texture
        return self.shape / decided if decided else None


Tally = Dict[str, Counts]

# Ten people, 1200 images each, counted from the answers in model-vs-human, raw-data/cue-conflict/: 0.959 overall, which
# the ICLR paper has too.
HUMANS: Tally = {name: Counts(shape, texture, 750 - shape - texture) for name, (shape, texture) in dict(
    airplane=(443, 53), bear=(501, 35), bicycle=(717, 2), bird=(581, 19), boat=(348, 51), bottle=(672, 9),
    car=(671, 18), cat=(561, 24), chair=(680, 6), clock=(705, 3), dog=(529, 33), elephant=(553, 21),
    keyboard=(571, 35), knife=(483, 59), oven=(574, 19), truck=(647, 11)).items()}


@dataclass(frozen=True)
class Stimulus:
    """An image with the shape of one category and the texture of one, maybe the same."""
    path: Path
    shape: str
    texture: str

    @property
    def conflict(self) -> bool:
        return self.shape != self.texture


def find_stimuli(folder: str) -> List[Stimulus]:
    """The images in a folder, laid out as ``cat/cat4-truck2.png``, with a cat's shape and a truck's texture.

    Raises:
        ValueError: There is no such folder; there is no image in it; or one has another name, is in the folder of
            another category, or all have shape and texture of one category.
    """
    root, stimuli = Path(folder), []
    if not root.is_dir():
        raise ValueError(f'no folder {folder}')
    for path in sorted(path for path in root.rglob('*') if path.suffix.lower() in SUFFIXES):
        # a number of the trial may stand before, with _
        found = re.fullmatch(r'(?:.*_)?([a-z]+)\d+-([a-z]+)\d+', path.stem)
        if not found or not set(found.groups()) <= set(CATEGORIES):
            raise ValueError(f"{path} is not named as an image of the cue-conflict set, 'cat4-truck2' say; the "
                             f"categories are {', '.join(CATEGORIES)}")
        if path.parent.name != found[1]:
            raise ValueError(f'{path} lies in the folder of another category; it was expected in one named {found[1]}')
        stimuli.append(Stimulus(path, *found.groups()))
    if not stimuli:
        raise ValueError(f"no image in {folder}; it should hold folders such as {', '.join(list(CATEGORIES)[:3])}, "
                         f"with files that end in {', '.join(SUFFIXES)}")
    if not any(stimulus.conflict for stimulus in stimuli):
        raise ValueError(f'no image in {folder} has the shape of one category and the texture of another')
    return stimuli


def categorise(logits: Tensor) -> List[str]:
    """The categories that a classifier decides for.

    Args:
        logits: (N, 1000).

    Raises:
        ValueError: They are of another number of classes.
    """
    if logits.ndim != 2 or logits.shape[1] != CLASSES:
        raise ValueError(f'logits (N, {CLASSES}) are needed, got {tuple(logits.shape)}')
    probabilities = logits.float().softmax(1)
    means = torch.stack([probabilities[:, list(indices)].mean(1) for indices in CATEGORIES.values()], 1)
    return [list(CATEGORIES)[index] for index in means.argmax(1).tolist()]


def decide(classifier: Classifier, batches: Iterable[Sequence[Stimulus]], device: str = 'cpu') -> List[str]:
    """The categories that a classifier decides for, stimulus by stimulus. It is moved to the device for the while.

    Raises:
        ValueError: An image cannot be read.
    """
    classifier.to(device)
    decisions: List[str] = []
    with torch.inference_mode():
        for batch in batches:
            images = torch.stack([to_tensor(open_image(stimulus.path), classifier.size) for stimulus in batch])
            images = images.to(device, memory_format=torch.channels_last)  # faster, on CPUs too
            decisions += categorise(classifier(images).cpu())
    classifier.to('cpu')
    return decisions


def tally(stimuli: Sequence[Stimulus], decisions: Sequence[str]) -> Tally:
    """Decisions by category of the shape, without the stimuli that have no conflict.

    Raises:
        ValueError: There are not as many decisions as stimuli.
    """
    if len(stimuli) != len(decisions):
        raise ValueError(f'{len(stimuli)} stimuli and {len(decisions)} decisions')
    counts = {name: Counts() for name in CATEGORIES}
    for stimulus, decision in zip(stimuli, decisions):
        if stimulus.conflict:
            kind = {stimulus.shape: 'shape', stimulus.texture: 'texture'}.get(decision, 'neither')
            setattr(counts[stimulus.shape], kind, getattr(counts[stimulus.shape], kind) + 1)
    return counts


def overall(counts: Tally) -> Counts:
    """All categories as one."""
    return Counts(*(sum(getattr(c, kind) for c in counts.values()) for kind in ('shape', 'texture', 'neither')))


def table(tallies: Dict[str, Tally]) -> str:
    """Shape biases of named tallies beside those of people, in Markdown."""
    columns = {**tallies, 'humans': HUMANS}
    totals = {name: overall(counts) for name, counts in columns.items()}
    rows = [[category, *(_number(counts[category].bias) for counts in columns.values())] for category in CATEGORIES]
    rows.append(['**overall**', *(f'**{_number(total.bias)}**' for total in totals.values())])
    rows.append(['shape / texture / neither', *(f'{total.shape} / {total.texture} / {total.neither}'
                                                for total in totals.values())])
    return markdown_table(['', *columns], rows)


def _number(bias: Optional[float]) -> str:
    return '-' if bias is None else f'{bias:.3f}'


def summary(counts: Tally) -> Dict[str, Any]:
    """What a JSON says of a tally; a bias is null where nothing was decided for shape or texture."""
    def facts(c: Counts) -> Dict[str, Any]:
        return dict(shape_bias=c.bias, shape=c.shape, texture=c.texture, neither=c.neither)

    return dict(**facts(overall(counts)), categories={name: facts(c) for name, c in counts.items()})


def plot_shape_bias(tallies: Dict[str, Tally]) -> 'Figure':
    """A mark for every category, lines at the overall biases, shape to the left, people in blue.

    Raises:
        ValueError: There is no tally.
    """
    from matplotlib.figure import Figure
    if not tallies:
        raise ValueError('there is nothing to plot')
    order = sorted(CATEGORIES, key=lambda name: -HUMANS[name].bias)
    figure = Figure(figsize=(7.2, 6.6), layout='constrained')
    axes = figure.subplots()
    look = looks(['humans', *tallies])  # people as the first: the same in every picture
    series = [*tallies.items(), ('humans', HUMANS)]
    for name, counts in series:
        colour, marker = look[name]
        mean = overall(counts).bias
        marks = [(counts[category].bias, row) for row, category in enumerate(order)
                 if counts[category].bias is not None]
        axes.scatter(*zip(*marks) if marks else ([], []), marker=marker, s=60, color=colour, edgecolors='black',
                     linewidths=0.5, zorder=3, clip_on=False, label=wrapped(f'{name}: {_number(mean)}', 80))
        if mean is not None:
            axes.axvline(mean, color=colour, linewidth=1.5)
    axes.set(xlim=(1, 0), ylim=(-0.5, len(order) - 0.5), xlabel="fraction of 'shape' decisions",
             ylabel='category of the shape')
    ticks = [tenths / 10 for tenths in range(11)]
    axes.set_xticks(ticks)
    axes.set_yticks(range(len(order)), order)
    axes.tick_params(axis='y', length=0, pad=9)  # marks at 1 reach over the edge
    for row in range(len(order) - 1):
        axes.axhline(row + 0.5, color='grey', linestyle='dotted', linewidth=0.7, alpha=0.5)
    top = axes.secondary_xaxis('top', functions=(lambda x: 1 - x, lambda x: 1 - x))
    top.set_ticks(ticks)
    top.set_xlabel("fraction of 'texture' decisions")
    labels = [marks.get_label() for marks in axes.collections]
    figure.legend(loc='outside lower center', ncols=legend_columns(labels, 92, 4), fontsize=9, frameon=False)
    return figure
