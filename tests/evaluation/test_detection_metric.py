"""What a test of a detector reports: by hand, and equal to pycocotools and to mmdet's metric."""
import contextlib
import io
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmlk.evaluation.detection import DetectionMetric, Objects, pair
from tests.evaluation.ranks import evaluate, evaluate_in_ranks

SIZE = (120, 160)
IDS = [30, 7, 12, 101, 5]  # of images, not sorted, as in COCO's own file
THRESHOLDS = np.linspace(.5, 0.95, 10)


def box_mask(box):
    mask = np.zeros(SIZE, bool)
    left, top, width, height = (int(round(value)) for value in box)
    mask[top:top + height, left:left + width] = True
    return mask


def random_box(rng):
    width, height = rng.uniform(4, 110, 2)
    return [float(rng.uniform(0, SIZE[1] - width)), float(rng.uniform(0, SIZE[0] - min(height, 100))),
            float(width), float(min(height, 100))]


@pytest.fixture(scope='module')
def annotations():
    """Objects of three of four classes, whose categories are not in the order of their ids: of all sizes, crowds, and
    masks of each form."""
    rng = np.random.RandomState(0)
    found = []
    for image in IDS[:-1]:
        for _ in range(8):
            box = [float(round(value)) for value in random_box(rng)]
            left, top, width, height = box
            runs = rle.encode(np.asfortranarray(box_mask(box), np.uint8))
            form = len(found) % 3
            polygon = [[left, top, left + width, top, left + width, top + height, left, top + height]]
            counts = [] if form != 1 else uncompressed(box_mask(box))
            crowd = int(len(found) % 7 == 6)
            found.append(dict(
                id=len(found) + 1, image_id=image, category_id=int(rng.choice([9, 2, 5])), bbox=box, iscrowd=crowd,
                area=float(rle.area(runs)), segmentation=polygon if form == 0 and not crowd else
                dict(size=list(SIZE), counts=counts) if form == 1 else
                dict(size=list(SIZE), counts=runs['counts'].decode())))
    return dict(images=[dict(id=image, height=SIZE[0], width=SIZE[1], file_name=f'{image}.jpg') for image in IDS],
                categories=[dict(id=number, name=f'c{number}') for number in (9, 2, 5, 4)], annotations=found)


def uncompressed(mask):
    flat = mask.ravel(order='F').astype(int)
    places = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    return np.diff(np.concatenate([[0], places, [flat.size]])).tolist()


@pytest.fixture(scope='module')
def coco(annotations, tmp_path_factory):
    path = tmp_path_factory.mktemp('coco') / 'objects.json'
    path.write_text(json.dumps(annotations))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.fixture(scope='module')
def samples(annotations):
    """Predictions near objects and at random, with equal scores; more than 100 of one class in one image."""
    rng = np.random.RandomState(1)
    labels = {9: 0, 2: 1, 5: 2, 4: 3}
    found = []
    for image in IDS:
        boxes, classes = [], []
        for item in annotations['annotations']:
            if item['image_id'] == image:
                for _ in range(2):
                    boxes.append(np.array(item['bbox']) + rng.uniform(-4, 4, 4))
                    classes.append(labels[item['category_id']] if rng.rand() < 0.8 else rng.randint(4))
        for _ in range(110 if image == 12 else 5):
            boxes.append(random_box(rng))
            classes.append(1 if image == 12 else rng.randint(4))
        boxes = np.array(boxes).clip(1)
        masks = torch.from_numpy(np.stack([box_mask(box) for box in boxes]))
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.from_numpy(rng.randint(1, 20, len(boxes)) / 20).float()
        order = scores.argsort(descending=True, stable=True)
        found.append(dict(img_id=image, ori_shape=SIZE, img_path=f'{image}.jpg', pred_instances=dict(
            bboxes=torch.from_numpy(boxes).float()[order], scores=scores[order],
            labels=torch.tensor(classes)[order], masks=masks[order])))
    return found


def make_metric(coco, kinds=('bbox', 'segm'), size=len(IDS), **settings):
    return lambda write: DetectionMetric(['c9', 'c2', 'c5', 'c4'], size, write, Objects(
        coco, {9: 0, 2: 1, 5: 2, 4: 3}, 'segm' in kinds), kinds, THRESHOLDS, **settings)


def of_pycocotools(coco, samples, kind):
    categories = [9, 2, 5, 4]
    results = []
    for sample in samples:
        found = sample['pred_instances']
        for box, score, label, mask in zip(*(found[key] for key in ('bboxes', 'scores', 'labels', 'masks'))):
            left, top, right, bottom = box.tolist()
            item = dict(image_id=sample['img_id'], score=float(score), category_id=categories[label])
            item.update(bbox=[left, top, right - left, bottom - top]) if kind == 'bbox' else item.update(
                segmentation=rle.encode(np.asfortranarray(mask.numpy(), np.uint8)))
            results.append(item)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.fixture(scope='module')
def report(coco, samples):
    return evaluate(make_metric(coco), samples)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_equal_to_pycocotools(kind, coco, samples, report):
    theirs = of_pycocotools(coco, samples, kind)
    found = report.kinds[kind]
    places = [theirs.params.catIds.index(category) for category in (9, 2, 5, 4)]  # pycocotools sorts them
    for ours, yours in ((found._precision, theirs.eval['precision'][..., -1][:, :, places]),
                        (found._recall, theirs.eval['recall'][..., -1][:, places])):
        np.testing.assert_array_equal(np.nan_to_num(ours, nan=-1), yours)
    names = ('AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large')
    assert [found.metrics[name] for name in names] == pytest.approx(theirs.stats[:6], abs=1e-12)
    assert found.metrics['AR'] == pytest.approx(theirs.stats[8], abs=1e-12)
    assert 0.05 < found.metrics['AP'] < 0.9 and not np.isnan(found.metrics['AP small'])
    assert np.isnan(found.classes['AP'][3])  # there is no object of the class
    for label, place in enumerate(places[:3]):
        precision = theirs.eval['precision'][:, :, place]
        assert found.classes['AP'][label] == pytest.approx(precision[:, :, 0, -1].mean(), abs=1e-12)
        assert found.classes['AP75'][label] == pytest.approx(precision[5, :, 0, -1].mean(), abs=1e-12)
    assert found.figures.images == ['5', '7', '12', '30', '101']
    assert np.bincount(found.figures.image[found.figures.label == 1])[2] == 100


def test_equal_to_the_metric_of_mmdet(annotations, coco, samples, tmp_path):
    from mmdet.evaluation import CocoMetric
    path = tmp_path / 'objects.json'
    path.write_text(json.dumps(annotations))
    few = [dict(sample, pred_instances={key: value[:60] for key, value in sample['pred_instances'].items()})
           for sample in samples]  # mmdet counts up to 1000 in some of its figures
    metric = CocoMetric(str(path), metric=['bbox', 'segm'])
    metric.dataset_meta = dict(classes=('c9', 'c2', 'c5', 'c4'))
    for sample in few:
        metric.process(None, [sample])
    ours = evaluate(make_metric(coco, encoded=lambda index: metric.results[index][1]['masks']), few)
    theirs = metric.evaluate(len(IDS))
    for kind, found in ours.kinds.items():
        for name, key in dict(AP='mAP', AP50='mAP_50', AP75='mAP_75', **{
                f'AP {size}': f'mAP_{size[0]}' for size in ('small', 'medium', 'large')}).items():
            assert round(found.metrics[name], 3) == pytest.approx(theirs[f'coco/{kind}_{key}'])


def test_two_processes_count_each_image_once(coco, samples, report, tmp_path):
    two = evaluate_in_ranks(make_metric(coco), samples, tmp_path / 'two')
    for kind, found in report.kinds.items():
        for name in ('images', 'objects', 'image', 'label', 'score', 'matched', 'ignored'):
            np.testing.assert_array_equal(getattr(two.kinds[kind].figures, name), getattr(found.figures, name))
        np.testing.assert_array_equal(two.kinds[kind].confusion, found.confusion)
    np.testing.assert_allclose(two.kinds['segm'].contours, report.kinds['segm'].contours, rtol=1e-12)
    for name in ('worst', 'best'):
        assert [(e.path, e.score) for e in getattr(two, name)] == [(e.path, e.score) for e in getattr(report, name)]


def test_annotations_of_the_dataset_are_those_of_mmdet(annotations, samples, tmp_path):
    """Without an annotation file the samples hold the objects, and the area of an object is that of its box."""
    from mmdet.evaluation import CocoMetric
    labels = {9: 0, 2: 1, 5: 2, 4: 3}
    own = []
    for sample in samples:
        mine = [item for item in annotations['annotations'] if item['image_id'] == sample['img_id']]
        instances = [dict(bbox=[x, y, x + w, y + h], bbox_label=labels[item['category_id']], mask=item['segmentation'],
                          ignore_flag=item['iscrowd']) for item in mine for x, y, w, h in [item['bbox']]]
        found = {key: value[:60] for key, value in sample['pred_instances'].items()}
        own.append(dict(sample, instances=instances, pred_instances=found))
    metric = CocoMetric(metric=['bbox', 'segm'])
    metric.dataset_meta = dict(classes=('c9', 'c2', 'c5', 'c4'))
    metric.process(None, own)
    theirs = metric.evaluate(len(IDS))
    ours = evaluate(make_metric(None), own)
    for kind, found in ours.kinds.items():
        for name, key in dict(AP='mAP', **{'AP large': 'mAP_l', 'AP small': 'mAP_s'}).items():
            assert round(found.metrics[name], 3) == pytest.approx(theirs[f'coco/{kind}_{key}'])


# By hand: two objects of class a and one of b

def by_hand(coco_like, boxes, labels, scores, masks=None, kinds=('bbox', )):
    found = dict(bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels=torch.tensor(labels).long(),
                 scores=torch.tensor(scores))
    if masks is not None:
        found['masks'] = masks
    sample = dict(img_id=0, ori_shape=(50, 60), img_path='a.jpg', instances=coco_like, pred_instances=found)
    return evaluate(lambda write: DetectionMetric('ab', 1, write, Objects(None, {}, 'segm' in kinds), kinds,
                                                  THRESHOLDS), [sample])


OBJECTS = [dict(bbox=[0, 0, 10, 10], bbox_label=0), dict(bbox=[20, 20, 40, 40], bbox_label=0),
           dict(bbox=[40, 0, 60, 20], bbox_label=1), dict(bbox=[0, 30, 20, 50], bbox_label=1, ignore_flag=1)]


def test_confusion_calibration_and_score_of_an_image_by_hand():
    found = by_hand(OBJECTS, [[0, 0, 10, 10], [20, 20, 40, 40], [21, 20, 40, 40], [2, 31, 18, 49], [40, 0, 60, 20]],
                    [0, 1, 0, 0, 1], [0.95, 0.9, 0.8, 0.7, 0.2])
    boxes = found.kinds['bbox']
    # a found as a, a found as b; a second a at the same place and an a in a crowd of b; b has too low a score
    assert boxes.confusion.tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert [example.score for example in found.worst] == [2 * 1 / (2 * 2 + 1 + 1)]
    # right: 0.95, 0.8 (of class a), 0.2; wrong: 0.9 (of class b) and 0.7 (the crowd is of b)
    calibration = boxes.calibration
    assert calibration.right.sum() == 3 and calibration.count.sum() == 5
    gaps = [0.05 - 0 + 0, 0.9, 0.2, 0.7, 0.8]  # the bin of 0.95 is alone; 0.9 shares the bin of (0.867, 0.933]
    assert boxes.metrics['ECE'] == pytest.approx((gaps[0] + gaps[1] + gaps[2] + gaps[3] + gaps[4]) / 5, abs=1e-6)
    assert boxes.figures.objects[0].tolist() == [[2, 1]]
    assert [len(example.prediction.boxes) for example in found.worst] == [4]


def test_masks_by_hand_and_encoded_already():
    masks = np.zeros((2, 50, 60), bool)
    masks[0, 0:10, 0:10] = masks[1, 20:40, 22:40] = True
    encoded = [rle.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    objects = [dict(one, mask=[[left, top, right, top, right, bottom, left, bottom]])
               for one in OBJECTS for left, top, right, bottom in [one['bbox']]]
    results = [by_hand(objects, [[0, 0, 10, 10], [22, 20, 40, 40]], [0, 0], [0.9, 0.8], given, ('bbox', 'segm'))
               for given in (torch.from_numpy(masks), encoded)]
    for report in results:
        found = report.kinds['segm']
        # 2 % of the diagonal of 78 are 2 pixels: the second mask lacks two columns of 20
        whole, part = np.zeros((2, 50, 60), bool)
        whole[20:40, 20:40] = part[20:40, 22:40] = True
        whole[22:38, 22:38] = part[22:38, 24:38] = False
        expected = (1 + (whole & part).sum() / (whole | part).sum()) / 2
        assert found.classes['Boundary IoU'][0] == pytest.approx(expected) and np.isnan(
            found.classes['Boundary IoU'][1])
        assert report.kinds['bbox'].contours is None and found.metrics['Boundary IoU'] == pytest.approx(expected)


def test_nothing_predicted_and_nothing_there():
    found = by_hand(OBJECTS, [], [], [])
    assert found.kinds['bbox'].metrics['AP'] == 0 and np.isnan(found.kinds['bbox'].metrics['ECE'])
    assert found.kinds['bbox'].confusion.tolist() == [[0, 0, 2], [0, 0, 1], [0, 0, 0]]
    assert [example.score for example in found.worst] == [0]
    found = by_hand([], [], [], [])
    assert np.isnan(found.kinds['bbox'].metrics['AP']) and not found.worst
    none = torch.zeros(0, 50, 60, dtype=torch.bool)
    assert np.isnan(by_hand([], [], [], [], none, ('bbox', 'segm')).kinds['segm'].metrics['AP'])


def test_pairs():
    overlaps = np.array([[0.6, 0.7, 0.0], [0.1, 0.9, 0.0], [0.55, 0.2, 0.0], [0.0, 0.1, 0.9], [0.0, 0.0, 0.0]])
    assert pair(overlaps, np.array([False, False, True])) == ([(0, 1), (2, 0)], [1, 4], [])
    assert pair(np.zeros((2, 0)), np.zeros(0, bool)) == ([], [0, 1], [])
    assert pair(np.zeros((0, 2)), np.array([False, True])) == ([], [], [0])


def test_masks_that_are_not_predicted_and_images_that_are_not_annotated(coco, samples):
    lacking = [dict(sample, pred_instances={key: value for key, value in sample['pred_instances'].items()
                                            if key != 'masks'}) for sample in samples]
    with pytest.raises(ValueError, match='evaluates masks .segm., and the model predicts none'):
        evaluate(make_metric(coco), lacking)
    with pytest.raises(ValueError, match='the image 8 of the dataset is not in the annotation file'):
        evaluate(make_metric(coco), [dict(samples[0], img_id=8)])
