"""Looks of models, and names beside points."""
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mmlk.analysis.palette import COLOURS, Point, add_panels, looks, name_points


def test_each_name_has_a_look_of_its_own():
    names = [str(index) for index in range(56)]
    assert len(set(looks(names).values())) == 56
    assert looks(['a', 'b', 'a']) == looks(['a', 'b'])
    assert len({to_rgb(colour) for colour in COLOURS}) == len(COLOURS)


@pytest.mark.parametrize('number', [1, 2, 3, 4, 5])
def test_panels_fill_the_width(number):
    figure = Figure(figsize=(6, 3))
    axes = add_panels(figure, number)
    assert len(axes) == number
    boxes = [panel.get_position() for panel in axes]
    assert max(box.x1 for box in boxes) == pytest.approx(boxes[-1].x1)
    assert len({round(box.y0, 6) for box in boxes}) == (number + 1) // 2


def test_names_lie_on_nothing_and_inside():
    figure = Figure(figsize=(6, 4), dpi=100)
    axes, = add_panels(figure, 1)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    points = [Point('one', 0.5, 0.5, 'k', 0.1), Point('two', 0.5, 0.5, 'r'), Point('at the edge', 1.0, 1.0, 'b'),
              Point('in its way', 0.58, 0.53, 'g')]
    name_points(figure, {axes: points})
    renderer = FigureCanvasAgg(figure).get_renderer()
    frame = axes.get_window_extent(renderer)
    assert [text.get_text() for text in axes.texts] == [point.name for point in points]
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert not [1 for one in boxes for other in boxes if one is not other and one.overlaps(other)]
    places = axes.transData.transform([(point.x, point.y) for point in points])
    assert not [1 for box in boxes for x, y in places if box.contains(x, y)]
    for box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
