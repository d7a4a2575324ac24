"""One colour and one marker for each model, the same in every panel of a picture, and names beside points."""
from typing import TYPE_CHECKING, Dict, Iterable, List, NamedTuple

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


def add_panels(figure: 'Figure', number: int) -> List['Axes']:
    """Axes in rows of two, so that they are readable at the width of a page; a last one alone is as wide as two."""
    rows = -(-number // 2)
    grid = figure.add_gridspec(rows, min(2, number))
    places = [grid[index // 2, index % 2 if index + 1 < number or number % 2 == 0 else slice(None)]
              for index in range(number)]
    return [figure.add_subplot(place) for place in places]


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
        taken = []
        for point in points:
            (x, low), (_, high) = axes.transData.transform([(point.x, point.y - point.spread),
                                                            (point.x, point.y + point.spread)])
            taken.append(Bbox.from_extents(x - 6, low - 6, x + 6, high + 6))
        frame = axes.get_window_extent(renderer)
        for point in points:
            name = plain(point.name)
            text = axes.text(0, 0, name, fontsize=9)
            size = text.get_window_extent(renderer).size
            text.remove()
            at = axes.transData.transform((point.x, point.y))
            candidates = []
            for right, up in _OFFSETS:
                corner = at + figure.dpi / 72 * np.array([right, up]) - size * (right < 0, up < 0)
                box = Bbox.from_bounds(*corner, *size)
                outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
                candidates.append((outside, sum(box.overlaps(other) for other in taken), right, up, box))
            _, _, right, up, box = min(candidates, key=lambda candidate: candidate[:2])
            taken.append(box)
            line = dict(arrowstyle='-', color=point.colour, linewidth=0.5, shrinkA=0, shrinkB=4,
                        relpos=(0 if right > 0 else 1, 0.5))
            text = axes.annotate(name, (point.x, point.y), (right, up), textcoords='offset points', fontsize=9,
                                 color=point.colour, ha='left' if right > 0 else 'right',
                                 va='bottom' if up > 0 else 'top', arrowprops=line if abs(up) > _NEAR else None)
            text.set_in_layout(False)
