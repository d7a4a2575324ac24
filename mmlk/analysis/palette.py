"""One colour and one marker for each model, the same in every panel of a picture, and names beside points."""
import re
from typing import TYPE_CHECKING, Dict, Iterable, List, NamedTuple, Sequence

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which people with each kind of colour blindness tell apart (jfly.uni-koeln.de/color),
#: without the yellow, which is faint on white.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = 'osD^vP*X'
_OFFSETS = [(right, up) for distance in (4, 14, 26, 38, 50, 65, 80, 95) for up in (distance, -distance)
            for right in (9, -9)]
LABEL = 24  #: Letters in a line of a name beside the axes.
_NEAR = 14  # a name that is farther up or down has a line to its point


class Look(NamedTuple):
    """How a model is drawn: a colour as matplotlib takes it, and one of its markers."""
    colour: str
    marker: str


def looks(names: Iterable[str]) -> Dict[str, Look]:
    """A look for each name, in order. 56 names have different ones: seven colours and eight markers in turn."""
    return {name: Look(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
            for index, name in enumerate(dict.fromkeys(names))}


def plain(text: str) -> str:
    """Returns a text in which matplotlib sees no formula, and which it does not leave out of a legend."""
    return (' ' if text.startswith('_') else '') + text.replace('$', r'\$')


def wrapped(name: str, width: int) -> str:
    """Returns :func:`plain` text in lines of at most ``width`` letters, which end after ``-``, ``_``, ``/`` or a space
    where there is one."""
    lines = ['']
    for part in re.findall(rf'[^-_/\s]{{1,{width - 1}}}[-_/\s]?|[-_/\s]', name):
        if len(lines[-1] + part.rstrip()) > width:
            lines.append('')
        lines[-1] += part
    return '\n'.join(plain(line.strip()) for line in lines)


def most_lines(texts: Iterable[str]) -> int:
    """Returns the number of lines of the text that has most."""
    return 1 + max(text.count('\n') for text in texts)


def rows_height(labels: Iterable[str]) -> float:
    """Returns the height, in inches, that rows with these labels beside the axes need."""
    return sum(0.34 + 0.17 * label.count('\n') for label in labels)


def legend_columns(labels: Sequence[str], letters: int, most: int) -> int:
    """Returns how many columns of a legend, at most ``most``, there is room for in a line of so many letters."""
    longest = max(len(line) for label in labels for line in label.split('\n')) + 6  # and its marker
    return max(1, min(most, len(labels), letters // longest))


def add_panels(figure: 'Figure', number: int) -> List['Axes']:
    """Axes in rows of two, so that they are readable at the width of a page; a last one alone is as wide as two. Long
    labels of one row take no width from the others."""
    rows = figure.subfigures(-(-number // 2), 1, squeeze=False)[:, 0]
    return [axes for index, row in enumerate(rows)
            for axes in row.subplots(1, min(2, number - 2 * index), squeeze=False)[0]]


class Point(NamedTuple):
    """A point to name, in the units of its axes; ``spread`` is how far a whisker goes up and down."""
    name: str
    x: float
    y: float
    colour: str
    spread: float = 0.0


def name_points(figure: 'Figure', named: Dict['Axes', List[Point]]) -> None:
    """Write names beside points, inside the axes if they fit there, and off points, whiskers and other names if there
    is such a place.

    Args:
        figure: A figure in which everything else is drawn already.
        named: The points of some of its axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # sets the layout, on which the places in pixels depend
    for axes, points in named.items():
        taken, written = [], []
        for point in points:
            (x, low), (_, high) = axes.transData.transform([(point.x, point.y - point.spread),
                                                            (point.x, point.y + point.spread)])
            taken.append(Bbox.from_extents(x - 6, low - 6, x + 6, high + 6))
        frame = axes.get_window_extent(renderer)
        for point in points:
            name = wrapped(point.name, 20)
            text = axes.text(0, 0, name, fontsize=9)
            size = text.get_window_extent(renderer).size
            text.remove()
            at = axes.transData.transform((point.x, point.y))
            candidates = []
            for right, up in _OFFSETS:
                corner = at + figure.dpi / 72 * np.array([right, up]) - size * (right < 0, up < 0)
                box = Bbox.from_bounds(*corner, *size)
                outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
                covered = sum(map(box.overlaps, taken)) + 3 * sum(map(box.overlaps, written))
                candidates.append((outside, covered, right, up, box))
            _, _, right, up, box = min(candidates, key=lambda candidate: candidate[:2])
            written.append(box)
            line = dict(arrowstyle='-', color=point.colour, linewidth=0.5, shrinkA=0, shrinkB=4,
                        relpos=(0 if right > 0 else 1, 0.5))
            text = axes.annotate(name, (point.x, point.y), (right, up), textcoords='offset points', fontsize=9,
                                 color=point.colour, ha='left' if right > 0 else 'right',
                                 va='bottom' if up > 0 else 'top', arrowprops=line if abs(up) > _NEAR else None)
            text.set_in_layout(False)
