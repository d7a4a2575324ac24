"""Accuracies of selections of images: those of mmseg and of pycocotools on datasets that hold the images as often."""
import contextlib
import io

import numpy as np
import pytest
import torch

from mmlk.evaluation import accuracies
from mmlk.evaluation.accuracies import average_precision, mean_iou
from mmlk.evaluation.per_image import DetectionFigures, SegmentationFigures

WEIGHTS = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 3, 1, 0, 0], [0, 0, 0, 0, 6, 0], [0, 2, 0, 0, 1, 3], [5, 1, 0, 0, 0, 0]])


@pytest.fixture(scope='module')
def maps():
    """Six label maps and their predictions, of five classes, of which the last is in one image only."""
    rng = np.random.RandomState(0)
    labels = rng.randint(0, 4, (6, 12, 14))
    predictions = np.where(rng.rand(6, 12, 14) < 0.6, labels, rng.randint(0, 4, (6, 12, 14)))
    labels[4, :3], labels[:, -2:] = 4, 255
    return torch.from_numpy(labels), torch.from_numpy(predictions)


def segmentation(labels, predictions, classes=5):
    from mmseg.evaluation import IoUMetric
    counts = [IoUMetric.intersect_and_union(one, label, classes, 255) for one, label in zip(predictions, labels)]
    inside, _, predicted, labelled = (np.stack([part.numpy() for part in parts]).astype(np.int64)
                                      for parts in zip(*counts))
    return SegmentationFigures([str(i) for i in range(len(labels))], list('abcde'), inside, predicted, labelled)


def test_mean_iou_is_mmsegs_for_images_that_are_there_several_times(maps):
    from mmseg.evaluation import IoUMetric
    labels, predictions = maps
    found = mean_iou(segmentation(labels, predictions), WEIGHTS)
    for weights, value in zip(WEIGHTS, found):
        metric = IoUMetric()
        metric.dataset_meta = dict(classes=list('abcde'))
        index = np.repeat(np.arange(6), weights)
        metric.process({}, [dict(pred_sem_seg=dict(data=predictions[i]), gt_sem_seg=dict(data=labels[i]))
                            for i in index])
        assert value == pytest.approx(metric.compute_metrics(metric.results)['mIoU'], abs=0.0051)
    assert len(set(found)) == len(found)


def test_a_selection_without_labels_has_no_accuracy(maps):
    figures = segmentation(*maps)
    assert np.isnan(mean_iou(figures, np.zeros((1, 6)))).all()
    assert np.isnan(average_precision(evaluate(*scenes())[0], np.zeros((1, 6)))).all()


def scenes(images=6):
    """Objects and predictions of three classes, with crowds, of several sizes, and equal scores in several images."""
    rng = np.random.RandomState(3)
    objects, found = [], []
    for image in range(1, images + 1):
        for _ in range(rng.randint(1, 6)):
            x, y = rng.uniform(0, 150, 2)
            width, height = rng.uniform(8, 120, 2)
            kind = int(rng.randint(1, 4)) if image > 1 else 3
            objects.append(dict(image_id=image, category_id=kind, bbox=[x, y, width, height], area=width * height,
                                iscrowd=int(rng.rand() < 0.2)))
            for score in rng.choice(np.arange(1, 20) / 20, rng.randint(0, 4), replace=False):
                shift = rng.normal(0, 6, 4)
                box = [x + shift[0], y + shift[1], max(2, width + shift[2]), max(2, height + shift[3])]
                found.append(dict(image_id=image, category_id=kind if rng.rand() < 0.8 else 2, bbox=box,
                                  score=float(score)))
        found.append(dict(image_id=image, category_id=1, bbox=[200, 200, 30, 30], score=0.97))
    # one class of one image has no score twice, so that copies of the image have one order
    return objects, list({(one['image_id'], one['category_id'], one['score']): one for one in found}.values())


def evaluate(objects, found, images=6):
    """The figures of images, and pycocotools' own evaluation."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    truth = COCO()
    truth.dataset = dict(images=[dict(id=image) for image in range(1, images + 1)],
                         categories=[dict(id=kind, name=f'{kind}') for kind in (1, 2, 3)],
                         annotations=[dict(one, id=number) for number, one in enumerate(objects, 1)])
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
    params = evaluation.params
    objects_in = np.zeros((4, images, 3), np.int64)
    parts = {name: [] for name in ('image', 'label', 'score', 'matched', 'ignored')}
    cells = np.empty((3, 4, images), object)
    cells.ravel()[:] = evaluation.evalImgs
    for label in range(3):
        for image in range(images):
            seen = cells[label, :, image]
            if seen[0] is None:
                continue
            objects_in[:, image, label] = [np.sum(np.array(one['gtIgnore']) == 0) for one in seen]
            number = len(seen[0]['dtScores'])
            parts['image'] += [image] * number
            parts['label'] += [label] * number
            parts['score'] += list(seen[0]['dtScores'])
            parts['matched'].append(np.stack([one['dtMatches'].T > 0 for one in seen]))
            parts['ignored'].append(np.stack([one['dtIgnore'].T.astype(bool) for one in seen]))
    found = {name: np.array(parts[name]) for name in ('image', 'label', 'score')}
    found.update({name: np.concatenate(parts[name], 1) for name in ('matched', 'ignored')})
    return DetectionFigures([str(i) for i in params.imgIds], list('123'), ['all', 'small', 'medium', 'large'],
                            params.iouThrs, objects_in, **found), evaluation


def copies(parts, weights):
    """What is in images that are there several times, one copy after the other, with new ids."""
    repeated = []
    for image, new in zip(np.repeat(np.arange(1, len(weights) + 1), weights), range(1, weights.sum() + 1)):
        repeated += [dict(one, image_id=new) for one in parts if one['image_id'] == image]
    return repeated


@pytest.mark.parametrize('rows_at_a_time', [1, 1000])
def test_average_precision_is_pycocotools_for_images_that_are_there_several_times(rows_at_a_time, monkeypatch):
    objects, found = scenes()
    figures, _ = evaluate(objects, found)
    monkeypatch.setattr(accuracies, '_NUMBERS', rows_at_a_time)
    values = {area: average_precision(figures, WEIGHTS, area) for area in figures.ranges}
    for row, weights in enumerate(WEIGHTS):
        _, expected = evaluate(copies(objects, weights), copies(found, weights), weights.sum())
        for place, area in enumerate(figures.ranges):
            precision = expected.eval['precision'][:, :, :, place, -1]
            known = precision[precision > -1]
            value = values[area][row]
            assert np.isnan(value) if not known.size else value == pytest.approx(100 * known.mean(), rel=1e-12), area
    assert len(set(values['all'])) == len(WEIGHTS) and 5 < values['all'][0] < 95
