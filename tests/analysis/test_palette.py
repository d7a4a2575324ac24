"""Looks of models, and names beside points."""
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from mmlk.analysis.cam import CamRow, grid
from mmlk.analysis.erf import ReceptiveField, heat_maps
from mmlk.analysis.latency import KnownResult, LatencyRow, plot_latency
from mmlk.analysis.palette import COLOURS, Point, add_panels, looks, name_points
from mmlk.analysis.panels import Instances, PredictedScene, side_by_side
from mmlk.analysis.shape_bias import HUMANS, plot_shape_bias
from mmlk.studies.inside import plot_robustness
from mmlk.studies.report import Cell, Column, Difference, StudyReport, StudyRow, plot_study


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
    figure.draw_without_rendering()
    boxes = [panel.get_window_extent() for panel in axes]
    assert max(box.x1 for box in boxes) == pytest.approx(boxes[-1].x1)
    assert len({round(box.y0, 6) for box in boxes}) == (number + 1) // 2


def drawn(figure, axes):
    """The boxes, in pixels, of the axes and of each of its texts, without the line that a name may have."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    return axes.get_window_extent(renderer), [Text.get_window_extent(text, renderer) for text in axes.texts]


def test_names_lie_on_nothing_and_inside():
    figure = Figure(figsize=(6, 4), dpi=100)
    axes, = add_panels(figure, 1)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    points = [Point('one', 0.5, 0.5, 'k', 0.1), Point('two', 0.5, 0.5, 'r'), Point('at the edge', 1.0, 1.0, 'b'),
              Point('in its way', 0.58, 0.53, 'g')]
    name_points(figure, {axes: points})
    frame, boxes = drawn(figure, axes)
    assert [text.get_text() for text in axes.texts] == [point.name for point in points]
    assert not [1 for one in boxes for other in boxes if one is not other and one.overlaps(other)]
    places = axes.transData.transform([(point.x, point.y) for point in points])
    assert not [1 for box in boxes for x, y in places if box.contains(x, y)]
    for box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1


def test_a_name_stays_inside_where_others_leave_no_room():
    """Three points on the right with long whiskers, as of networks of nearly one size over seeds."""
    figure = Figure(figsize=(3.3, 3), dpi=100)
    axes, = add_panels(figure, 1)
    axes.set(xlim=(0, 2.7), ylim=(60, 79))
    points = [Point('3x3', 2.05, 67.5, 'k', 5.4), Point('7x7 in the last stage', 2.19, 69.0, 'r', 6.2),
              Point('13x13 in the last stage', 2.6, 70.0, 'g', 7.0)]
    name_points(figure, {axes: points})
    frame, boxes = drawn(figure, axes)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    assert not [1 for one in boxes for other in boxes if one is not other and one.overlaps(other)]


FORMULA = 'cost $_^ x$'  # as a formula, matplotlib refuses to draw it


def of_fields():
    return heat_maps({FORMULA: ReceptiveField(np.ones((8, 8)), 1)})


def of_shape_bias():
    return plot_shape_bias({FORMULA: HUMANS})


def of_latency():
    row = LatencyRow(FORMULA, 'fp32', 'inference', 1, 10, False, [1.0, 2.0])
    return plot_latency([row], {FORMULA: KnownResult('mIoU', 50.0, 'published', '', '')}, FORMULA)


def of_predictions():
    found = Instances(np.array([[0., 0., 4., 4.]]), np.array([0]), scores=np.array([0.5]))
    scene = PredictedScene(np.zeros((8, 8, 3), np.uint8), None, found, FORMULA)
    return side_by_side({FORMULA: [scene]}, [FORMULA])


def of_study():
    cells = dict(accuracy=Cell((40.0, 42.0), 'trained here', ''), size=Cell((1.0, ), 'counted here', ''))
    made = StudyReport(FORMULA, [StudyRow(FORMULA, 'a.py', cells), StudyRow('b', 'b.py', cells)],
                       dict(accuracy=Column('mIoU (%)', 2), size=Column('Params (M)', 2)), [], {})
    made.differences = [Difference('mIoU', 'b', f'{FORMULA} of a model whose name is longer than a panel is wide', 1.0,
                                   (0.5, 1.5), 0.01, 50)]
    return plot_study(made, 'accuracy', ['size'])


def of_activations():
    return grid([CamRow(np.zeros((8, 8, 3), np.uint8), FORMULA, {FORMULA: np.zeros((8, 8, 3), np.uint8)})])


@pytest.mark.parametrize('picture', [of_activations, of_fields, of_shape_bias, of_latency, of_predictions, of_study])
def test_names_with_formulas_are_drawn_as_they_are_within_the_picture(picture):
    figure = picture()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    named = [text for text in figure.findobj(Text) if FORMULA in text.get_text().replace('\\$', '$')]
    assert named
    for text in named:
        box = text.get_window_extent(renderer)
        assert -1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, text.get_text()


LONG = [f'cascade-mask-rcnn_unireplknet-{size}_with-kernels-of-{side}x{side}_fpn_coco-and-photographs' for size, side in
        (('s', 13), ('b', 31), ('l', 51))]
LONG += ['a_name_that_is_short', 'NameWithoutAnyPlaceToBreakItWhichIsLongerThanALineMayBe']
IMAGE = np.zeros((8, 12, 3), np.uint8)


def long_fields():
    return heat_maps({name: ReceptiveField(np.ones((8, 8)), 1) for name in LONG})


def long_shape_bias():
    return plot_shape_bias(dict.fromkeys(LONG, HUMANS))


def long_latency():
    rows = [LatencyRow(name, 'fp32', mode, 1, 10, False, [1.0, 2.0 + place]) for mode in ('inference', 'training')
            for place, name in enumerate(LONG)]
    return plot_latency(rows, {name: KnownResult('mIoU', 50.0 + place, 'published', '', '')
                               for place, name in enumerate(LONG)}, 'machine')


def long_predictions():
    scenes = [PredictedScene(IMAGE, np.zeros((8, 12), int), np.zeros((8, 12), int), LONG[0] + '.jpg')]
    return side_by_side(dict.fromkeys(LONG, scenes), ['one'])


def long_activations():
    return grid([CamRow(IMAGE, LONG[0] + '.jpg: one', dict.fromkeys(LONG[1:], IMAGE))])


def long_robustness():
    return plot_robustness({name: {'clean': [50.0, 60.0], 'fog': [10.0, 20.0]} for name in LONG}, 'mIoU (%)')


def long_study():
    lines = [StudyRow(name, 'a.py', dict(accuracy=Cell((40.0 + place, 42.0 + place), 'trained here', ''),
                                         size=Cell((1.0 + place, ), 'counted here', '')))
             for place, name in enumerate(LONG)]
    columns = dict(accuracy=Column('mIoU (%)', 2), size=Column('Params (M)', 2))
    made = StudyReport(' and '.join(LONG), lines, columns, [], {})
    made.differences = [Difference('mIoU', name, LONG[0], 1.0, (-0.5, 1.5), 0.4, 50) for name in LONG[1:]]
    return plot_study(made, 'accuracy', ['size'])


@pytest.mark.parametrize('picture', [long_activations, long_fields, long_latency, long_predictions, long_robustness,
                                     long_shape_bias, long_study])
def test_long_names_are_whole_and_lie_on_no_other_text(picture):
    figure = picture()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [text for text in figure.findobj(Text) if text.get_visible() and re.search('[a-z]', text.get_text())]
    drawn = ''.join(text.get_text().replace('\n', '') for text in texts)
    assert all(name in drawn for name in LONG)
    boxes = [Text.get_window_extent(text, renderer) for text in texts]
    for text, box in zip(texts, boxes):
        assert -1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, text.get_text()
        assert -1 <= box.y0 and box.y1 <= figure.bbox.y1 + 1, text.get_text()
    over = [(one.get_text(), other.get_text()) for index, (one, box) in enumerate(zip(texts, boxes))
            for other, theirs in zip(texts[:index], boxes) if box.padded(-2).overlaps(theirs)]
    assert not over
