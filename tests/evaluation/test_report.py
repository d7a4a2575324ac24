"""The folder of a report, and its page in a browser."""
import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmlk.analysis.drawing import draw_annotation, legend
from mmlk.cli import main
from mmlk.cli.test import apply_options
from mmlk.evaluation import page
from mmlk.evaluation.detection import DetectionMetric, Found, Objects
from mmlk.evaluation.examples import Example
from mmlk.evaluation.folder import FILES, of_detection, of_segmentation, write
from mmlk.evaluation.per_image import DetectionFigures, SegmentationFigures
from mmlk.evaluation.pictures import draw_examples
from mmlk.evaluation.segmentation import SegmentationMetric
from tests.evaluation.ranks import evaluate
from tests.evaluation.test_segmentation import SOFTMAX, random_samples

REPO = Path(__file__).resolve().parent.parent.parent
NAMES = ['sky', '<b>$x_2$ & "y"</b>', 'tree', 'never']
ABOUT = dict(Config='configs/a.py', Checkpoint='<script>alert(1)</script>', Command='python tools/test.py --report r')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    for index in range(5):
        Image.fromarray(np.random.RandomState(index).randint(0, 256, (40, 50, 3), np.uint8)).save(
            folder / f'{index}.png')
    return folder


@pytest.fixture(scope='module')
def segmentation(images, tmp_path_factory):
    samples = [dict(one, img_path=str(images / one['img_path'])) for one in random_samples(5, 3)]
    samples[2]['img_path'] = 'petrel://bucket/2.png'  # on another machine
    results = evaluate(lambda write: SegmentationMetric(NAMES, 5, write, SOFTMAX), samples)
    folder = tmp_path_factory.mktemp('segmentation') / 'report'
    folder.mkdir()
    (folder / 'per_image_segm.npz').write_text('of an earlier report')
    (folder / 'mine.txt').write_text('mine')
    palette = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (255, 255, 0)]
    assert write(folder, 'segmentation', [of_segmentation(results)], results.worst, results.best, ABOUT,
                 palette) == folder / 'report.html'
    return results, folder


@pytest.fixture(scope='module')
def detection(images, tmp_path_factory):
    samples = []
    for index in range(5):
        boxes = np.array([[5, 5, 25, 25], [20, 10, 45, 35], [0, 0, 8, 8]]) + index
        masks = np.zeros((3, 40, 50), bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes):
            mask[top:bottom, left:right] = True
        instances = [dict(bbox=[5, 5, 25, 25], bbox_label=0, mask=[[5, 5, 25, 5, 25, 25, 5, 25]])]
        samples.append(dict(img_id=index, ori_shape=(40, 50), img_path=str(images / f'{index}.png'),
                            instances=instances, pred_instances=dict(
                                bboxes=torch.from_numpy(boxes).float(), labels=torch.tensor([0, 1, 2]),
                                scores=torch.tensor([0.9, 0.6, 0.1]), masks=torch.from_numpy(masks))))
    report = evaluate(lambda write: DetectionMetric(NAMES, 5, write, Objects(None, {}, True), ('bbox', 'segm'),
                                                    np.linspace(.5, 0.95, 10)), samples)
    folder = tmp_path_factory.mktemp('detection') / 'report'
    folder.mkdir()
    write(folder, 'detection', of_detection(report), report.worst, report.best, ABOUT)
    return report, folder


def table(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.reader(file))


def test_files_of_a_segmentor_hold_what_was_counted(segmentation):
    results, folder = segmentation
    facts = json.loads((folder / 'report.json').read_text(encoding='utf-8'))
    assert {path.name for path in folder.iterdir()} == {*facts['files'], 'mine.txt'} and set(facts['files']) <= {*FILES}
    assert 'per_image_segm.npz' not in facts['files']  # that of an earlier report
    pixels = facts['results']['pixels']
    assert pixels['metrics'] == results.metrics and facts['about'] == ABOUT and facts['images'] == 5
    head, *rows = table(folder / 'classes.csv')
    assert head == ['class', 'IoU', 'Acc', 'Precision', 'Recall', 'Boundary IoU', 'pixels']
    assert [row[0] for row in rows] == NAMES == [one['class'] for one in pixels['classes']]
    for index, (row, one) in enumerate(zip(rows[:3], pixels['classes'])):
        for name, cell in zip(head[1:-1], row[1:]):
            if not np.isnan(results.classes[name][index]):
                assert float(cell) == one[name] == results.classes[name][index]
    assert rows[3][1:] == ['', '', '', '', '', '0'] and pixels['classes'][3]['IoU'] is None  # the class does not occur
    confusion = table(folder / 'confusion_matrix.csv')
    assert confusion[0] == ['true / predicted', *NAMES]
    assert [list(map(int, row[1:])) for row in confusion[1:]] == results.confusion[:, :-1].tolist()
    bins = table(folder / 'calibration.csv')
    assert sum(int(row[2]) for row in bins[1:]) == results.confusion.sum() and len(bins) == 16
    figures = SegmentationFigures.load(folder / 'per_image.npz')
    np.testing.assert_array_equal(figures.intersection, results.figures.intersection)
    assert figures.images == results.figures.images and figures.classes == NAMES
    assert [one['score'] for one in facts['worst']] == sorted(one['score'] for one in facts['worst'])
    assert len(facts['worst']) == 3 and len(facts['best']) == 2


def test_files_of_a_detector_hold_what_was_counted(detection):
    report, folder = detection
    facts = json.loads((folder / 'report.json').read_text(encoding='utf-8'))
    assert list(facts['results']) == ['bbox', 'segm'] and {path.name for path in folder.iterdir()} == {*facts['files']}
    for kind, results in report.kinds.items():
        head, *rows = table(folder / f'classes_{kind}.csv')
        assert head == ['class', 'AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large', 'AR',
                        *(['Boundary IoU'] if kind == 'segm' else []), 'objects']
        assert float(rows[0][1]) == results.classes['AP'][0] and rows[0][-1] == '5' and rows[1][1] == ''
        assert table(folder / f'confusion_matrix_{kind}.csv')[0] == ['true / predicted', *NAMES, 'background']
        figures = DetectionFigures.load(folder / f'per_image_{kind}.npz')
        np.testing.assert_array_equal(figures.matched, results.figures.matched)
    assert facts['score_of_images'] == 'F-score'


def test_a_page_without_probabilities_says_why(tmp_path):
    none = SimpleNamespace(missing='the method has none')
    samples = random_samples(1, 3, heads=4)
    results = evaluate(lambda write: SegmentationMetric('abc', 1, write, none), samples)
    write(tmp_path, 'segmentation', [of_segmentation(results)], results.worst, results.best, ABOUT)
    assert 'No calibration error: the method has none.' in (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert not (tmp_path / 'calibration.png').exists() and not (tmp_path / 'best.jpg').exists()
    assert table(tmp_path / 'confusion_matrix.csv')[0] == ['true / predicted', 'a', 'b', 'c', 'other']
    facts = json.loads((tmp_path / 'report.json').read_text(encoding='utf-8'))
    assert facts['results']['pixels']['calibration'] == dict(missing='the method has none')


def test_parts_of_a_page_are_escaped():
    assert page.heading('<a>') == '<h2>&lt;a&gt;</h2>' and page.paragraph('a & b') == '<p>a &amp; b</p>'


def test_pages_in_a_browser_ask_nothing_of_the_network(segmentation, detection, browser):
    for (_, folder), pictures, tables in ((segmentation, 4, 3), (detection, 6, 5)):
        content = (folder / 'report.html').read_text(encoding='utf-8')
        assert not re.search(r'(src|href)="(?!data:)', content) and '://' not in content
        browser.get(f'file://{folder}/report.html')
        shown = browser.find_elements('css selector', 'img')
        for image in shown:  # they are decoded when they are near the window
            browser.execute_script('arguments[0].scrollIntoView(); return arguments[0].decode()', image)
        assert len(shown) == pictures and all(int(image.get_property('naturalWidth')) > 200 for image in shown)
        assert len(browser.find_elements('css selector', 'table')) == tables
        cells = [cell.text for cell in browser.find_elements('css selector', 'td')]
        assert NAMES[1] in cells and ABOUT['Checkpoint'] in cells
        sent = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
        asked = {one['params']['request']['url'].partition(':')[0] for one in sent
                 if one['method'] == 'Network.requestWillBeSent'}
        assert 'file' in asked <= {'file', 'data', 'chrome'}  # the last is the browser's own first page
        assert not browser.get_log('browser')


# Before the test

UPERNET, MASK_RCNN = (REPO / 'configs' / 'demo' / f'{name}.py' for name in (
    'upernet_replknet-tiny_ade20k', 'mask_rcnn_replknet-tiny_coco'))
REFUSED = {
    'no ground truth': (UPERNET, dict(test_evaluator=dict(format_only=True, output_dir='x')),
                        'IoUMetric has format_only=True in the test_evaluator: there is no ground truth'),
    'depth': (UPERNET, dict(test_evaluator=dict(type='DepthMetric')), 'the report needs IoUMetric'),
    'panoptic': (MASK_RCNN, dict(test_evaluator=dict(type='CocoPanopticMetric')), 'the report needs CocoMetric'),
    'proposals': (MASK_RCNN, dict(test_evaluator=dict(metric='proposal')), "neither metric='bbox' nor 'segm'"),
    'lvis': (MASK_RCNN, dict(test_evaluator=dict(type='LVISMetric')), 'LVIS annotates a part of the classes'),
    'classifier': (UPERNET, dict(default_scope='mmpretrain'), "not for default_scope = 'mmpretrain'"),
}


def options(**settings):
    return SimpleNamespace(**{**dict(show_dir=None, out=None, tta=False, optimize=None, merge=False), **settings})


@pytest.mark.parametrize('case', REFUSED)
def test_tests_without_a_report_are_refused(case, tmp_path, capsys):
    path, changes, said = REFUSED[case]
    cfg = Config.fromfile(str(path))
    cfg.merge_from_dict(changes)
    with pytest.raises(SystemExit):
        apply_options(cfg, options(report=str(tmp_path / 'report')))
    error = capsys.readouterr().err
    assert error.startswith('error: --report: ') and said in error and not (tmp_path / 'report').exists()


def test_a_panoptic_test_that_evaluates_masks_too_has_a_report_of_the_masks(tmp_path):
    cfg = Config.fromfile(str(MASK_RCNN))
    cfg.test_evaluator = [dict(type='CocoPanopticMetric'), cfg.test_evaluator]
    apply_options(cfg, options(report=str(tmp_path / 'report')))


def test_a_folder_that_cannot_be_written_is_refused_before_the_test(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    for folder in ('file', 'file/report'):
        with pytest.raises(SystemExit):
            main(['test', str(UPERNET), 'there_is_no.pth', '--report', str(tmp_path / folder)])
        error = capsys.readouterr().err
        assert error.startswith(f'error: --report {tmp_path / folder} cannot be written: ') and error.count('\n') == 1


def test_examples_are_image_truth_and_prediction_side_by_side(tmp_path):
    path, width, gap = tmp_path / 'a$b.png', 440, 8  # as wide as an image is shown
    image = np.random.RandomState(0).randint(0, 255, (110, width, 3), np.uint8)
    Image.fromarray(image).save(path)
    truth, predicted = np.zeros((110, width), np.uint8), np.full((110, width), 2, np.uint8)  # 2 is no class
    predicted[:50] = 1
    palette = [(0, 0, 255), (255, 0, 0), (0, 255, 0)]
    drawn = draw_examples([Example(str(path), 0.5, truth.shape, truth, predicted)] * 2, ['sky', 'sea'], palette, 'IoU')
    tiles = [image, draw_annotation(image, truth, ['sky', 'sea'], palette[:2]),
             draw_annotation(image, predicted, ['sky', 'sea'], palette[:2])]
    tops = [top for top in range(len(drawn) - 110) if np.array_equal(drawn[top:top + 110, gap:gap + width], image)]
    assert len(tops) == 2
    for top in tops:
        for index, tile in enumerate(tiles):
            left = gap + index * (gap + width)
            assert np.array_equal(drawn[top:top + 110, left:left + width], tile)
        assert (drawn[top - 20:top] < 100).any(), 'titles'
    below = drawn[tops[1] + 110:].reshape(-1, 3).tolist()
    assert [0, 0, 255] in below and [255, 0, 0] in below and [0, 255, 0] not in below, 'the classes that occur'
    bare = draw_examples([Example('gone.png', 0.5, truth.shape, None, predicted)], ['sky', 'sea'], None, 'IoU')
    line = bare[tops[0] + 50]
    assert (line[gap:gap + width] == 224).all() and (line[width + 2 * gap:-width - gap] == 255).all()


def detected(classes, boxes=((40, 20, 100, 60), )):
    """One row of a detector's prediction: boxes are left, top, width, height."""
    found = Found(np.array(boxes, float), np.zeros(len(boxes), int), None, np.full(len(boxes), 0.5))
    empty = Found(np.zeros((0, 4)), np.zeros(0, int), None)
    return draw_examples([Example('gone.png', 0.5, (220, 440), empty, found)], classes, [(255, 0, 0)] * len(classes),
                         'F-score')


def test_boxes_of_examples_are_where_they_are_and_named():
    drawn = detected(['disc'])
    prediction = drawn[32:252, 8 + 2 * 448:8 + 2 * 448 + 440]
    red = (prediction == (255, 0, 0)).all(2)
    rows, columns = np.flatnonzero(red[:, 60]), np.flatnonzero(red[60])
    assert (columns == [40, 140]).all() and rows[-1] == 80 and {20, 80} <= set(rows)
    assert (drawn[32:252, 8 + 448:8 + 448 + 440] == 224).all(), 'nothing in the ground truth'


@pytest.mark.parametrize('name', ['two\nlines', 7, '$x_^'])
def test_any_name_of_a_class_can_be_drawn(name):
    assert detected([name]).shape[1] == 3 * 440 + 4 * 8


def test_letters_that_are_not_latin_are_drawn():
    """Each letter that a font lacks looks the same: a box."""
    first, second = (legend([0], [name], [(0, 0, 0)], 300) for name in ('\u0434\u0430', '\u043d\u0435'))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize('size', [(6000, 20), (20, 6000)])
def test_tall_and_wide_images_are_drawn_whole_and_not_larger_than_needed(size):
    labels = np.zeros(size, np.uint8)
    drawn = draw_examples([Example('gone.png', 0.5, size, labels, labels)] * 4, ['sky'], None, 'IoU')
    assert drawn.shape[1] == 3 * 440 + 4 * 8 and drawn.shape[0] <= 4 * (3 * 440 + 40) + 60
