"""What a test of a detector reports: which predictions match which objects, from which average precisions follow.

The matches are found image by image by pycocotools' own code, so that each process has its images only.
"""
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from .accuracies import RECALLS, known_mean
from .boundary import boundary_iou, distance
from .calibration import Calibration
from .examples import Example, Examples
from .gathering import SummingMetric
from .per_image import DetectionFigures

OVERLAP = 0.5  #: IoU from which a prediction finds an object, in confusion matrix, calibration and score of an image.
SCORE = 0.3  #: Score from which a prediction counts in the confusion matrix and the score of an image, and is drawn.
_RANGES = ('all', 'small', 'medium', 'large')


def precisions(figures: DetectionFigures) -> Tuple[np.ndarray, np.ndarray]:
    """Computes precision and recall as pycocotools' ``COCOeval.accumulate`` does, from the matches of the images.

    Returns:
        The precision at 101 recalls, (T, 101, K, A), and the highest recall, (T, K, A); nan where there is no object.
    """
    classes, thresholds, areas = len(figures.classes), len(figures.thresholds), len(figures.ranges)
    precision = np.full((thresholds, len(RECALLS), classes, areas), np.nan)
    recall = np.full((thresholds, classes, areas), np.nan)
    objects = figures.objects.sum(1)  # (A, K)
    for label in range(classes):
        mine = np.flatnonzero(figures.label == label)
        mine = mine[np.argsort(-figures.score[mine], kind='stable')]
        for area in range(areas):
            if not objects[area, label]:
                continue
            matched, counted = figures.matched[area, mine].T, ~figures.ignored[area, mine].T  # (T, M)
            right = np.cumsum(matched & counted, 1).astype(float)
            wrong = np.cumsum(~matched & counted, 1).astype(float)
            reached = right / objects[area, label]
            precise = right / (wrong + right + np.spacing(1))
            precise = np.maximum.accumulate(precise[:, ::-1], 1)[:, ::-1]  # the best at this recall or a higher one
            recall[:, label, area] = reached[:, -1] if mine.size else 0
            for index in range(thresholds):
                places = np.searchsorted(reached[index], RECALLS)
                there = places < mine.size
                precision[index, :, label, area] = 0
                precision[index, there, label, area] = precise[index, places[there]]
    return precision, recall


@dataclass
class DetectionResults:
    """What was counted for the boxes or the masks of a detector with K classes.

    Args:
        figures: Matches in each image.
        confusion: (K + 1, K + 1), int64: objects by their class and that of the prediction that finds them. Objects
            that are not found are in the last column, and predictions that find no object in the last row.
        contours: (2, K), float64: sum of the Boundary IoU of the masks that are found as their class, and their number;
            None for boxes.
    """
    figures: DetectionFigures
    confusion: np.ndarray
    contours: Optional[np.ndarray]

    def __post_init__(self) -> None:
        self._precision, self._recall = precisions(self.figures)

    @property
    def classes(self) -> Dict[str, np.ndarray]:
        """AP and AR of each class, (K,), 0 to 1, by name; nan where there is no object."""
        found = {name: np.array([known_mean(part[:, :, label]) for label in range(len(self.figures.classes))])
                 for name, part in self._parts()}
        found['AR'] = np.array([known_mean(self._recall[:, label, 0]) for label in range(len(self.figures.classes))])
        if self.contours is not None:
            with np.errstate(invalid='ignore'):
                found['Boundary IoU'] = self.contours[0] / self.contours[1]
        return found

    @property
    def metrics(self) -> Dict[str, float]:
        """AP and AR over all classes, 0 to 1, and the calibration error."""
        found = {name: known_mean(part) for name, part in self._parts()}
        found['AR'] = known_mean(self._recall[:, :, 0])
        if self.contours is not None:
            found['Boundary IoU'] = known_mean(self.classes['Boundary IoU'])
        return dict(**found, ECE=self.calibration.error)

    def _parts(self) -> Iterator[Tuple[str, np.ndarray]]:
        """Yields the precisions, (T, 101, K), whose mean is the AP of this name."""
        yield 'AP', self._precision[..., 0]
        for threshold in (0.5, 0.75):
            there = np.isclose(self.figures.thresholds, threshold)
            if there.any():
                yield f'AP{100 * threshold:.0f}', self._precision[there, ..., 0]
        for area, name in enumerate(_RANGES[1:], 1):
            yield f'AP {name}', self._precision[..., area]

    @property
    def calibration(self) -> Calibration:
        """Of the scores: a prediction is right if it matches an object at the lowest threshold, which is 0.5."""
        figures, found = self.figures, Calibration()
        counted = ~figures.ignored[0, :, 0]
        found.add(figures.score[counted], figures.matched[0, counted, 0])
        return found


@dataclass
class DetectionReport:
    """The results of a test of a detector.

    Args:
        kinds: Those of the boxes, ``'bbox'``, and of the masks, ``'segm'``, as far as the config evaluates them.
        worst: Images with the lowest F-score of the predictions with a score of at least 0.3, by masks if there are
            any. Truth and prediction are :class:`Found`.
        best: Images with the highest.
    """
    kinds: Dict[str, DetectionResults]
    worst: List[Example]
    best: List[Example]


@dataclass
class Found:
    """Objects or predictions of an image, as pycocotools takes them.

    Args:
        boxes: (N, 4), float64: x, y, width, height.
        labels: (N,), int64.
        masks: N encoded masks; None without masks.
        scores: (N,), float64; None for objects.
    """
    boxes: np.ndarray
    labels: np.ndarray
    masks: Optional[List[dict]]
    scores: Optional[np.ndarray] = None


class Objects:
    """The annotated objects of images.

    Args:
        coco: The annotation file as pycocotools reads it. Without one, the samples hold the annotations, as those of
            mmdet's datasets do.
        labels: The label of each category in the file.
        masks: Whether masks are needed.
    """

    def __init__(self, coco: Any, labels: Dict[int, int], masks: bool):
        self.coco, self.labels, self.masks = coco, labels, masks

    def of(self, sample: dict) -> List[dict]:
        """Returns the objects of an image as dicts with id, label, bbox, area, iscrowd and, if masks are needed, the
        encoded segmentation.

        Raises:
            ValueError: The image is not in the annotation file.
        """
        if self.coco is None:
            return [self._of_dataset(number, instance, sample['ori_shape'][:2])
                    for number, instance in enumerate(sample['instances'], 1)]
        name = sample['img_id']
        if name not in self.coco.imgs:
            raise ValueError(f'the image {name} of the dataset is not in the annotation file of the test_evaluator: '
                             'both need the same ann_file')
        return [self._of_file(annotation) for annotation in self.coco.imgToAnns.get(name, ())
                if annotation['category_id'] in self.labels]

    def _of_file(self, annotation: dict) -> dict:
        found = dict(id=annotation['id'], label=self.labels[annotation['category_id']], bbox=annotation['bbox'],
                     area=annotation['area'], iscrowd=int(annotation.get('iscrowd', 0)))
        if self.masks:
            found['segmentation'] = self.coco.annToRLE(annotation)
        return found

    def _of_dataset(self, number: int, instance: dict, size: Tuple[int, int]) -> dict:
        """Converts an annotation as mmdet's ``CocoMetric`` does, which takes the area of the box."""
        from pycocotools import mask as coco
        left, top, right, bottom = instance['bbox']
        found = dict(id=number, label=int(instance['bbox_label']), bbox=[left, top, right - left, bottom - top],
                     area=(right - left) * (bottom - top), iscrowd=int(instance.get('ignore_flag', 0)))
        if self.masks:
            mask = instance['mask']
            if isinstance(mask, list):
                mask = coco.merge(coco.frPyObjects(mask, *size))
            elif isinstance(mask['counts'], list):
                mask = coco.frPyObjects(mask, *size)
            found['segmentation'] = mask
        return found


def predictions(sample: dict, encoded: Optional[List[dict]] = None) -> Tuple[Found, np.ndarray]:
    """Returns the predicted objects of a sample of mmdet, and the scores of their masks, (N,), float64.

    Args:
        sample: The sample. Its masks may be encoded already. Few detectors score masks by themselves.
        encoded: Its masks, if another metric has encoded them.
    """
    from pycocotools import mask as coco
    found = sample['pred_instances']
    boxes = found['bboxes'].cpu().numpy().astype(float)
    boxes[:, 2:] -= boxes[:, :2]
    masks: Any = found.get('masks') if encoded is None else encoded
    if masks is not None and not isinstance(masks, (list, tuple)):
        masks = coco.encode(np.asfortranarray(masks.cpu().numpy().transpose(1, 2, 0), np.uint8)) if len(masks) else []
    scores = found['scores'].cpu().numpy().astype(float)
    of_masks = found['mask_scores'].cpu().numpy().astype(float) if 'mask_scores' in found else scores
    return Found(boxes, found['labels'].cpu().numpy().astype(int), masks, scores), of_masks


@dataclass
class _Matches:
    """Those of the predictions of one image, as in :class:`DetectionFigures`."""
    objects: np.ndarray
    label: np.ndarray
    score: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray


def match(objects: List[dict], found: List[dict], kind: str, thresholds: np.ndarray, classes: int) -> _Matches:
    """Matches the predictions of an image with its objects by pycocotools' ``COCOeval``.

    Args:
        objects: As :meth:`Objects.of` returns them.
        found: Predictions, with a score in place of ``iscrowd``.
        kind: ``'bbox'`` or ``'segm'``.
        thresholds: Of the IoU, (T,).
        classes: Number of classes.
    """
    from pycocotools.cocoeval import COCOeval
    evaluation = COCOeval(iouType=kind)
    evaluation.params.iouThrs = thresholds
    most, areas = evaluation.params.maxDets[-1], evaluation.params.areaRng
    counts = np.zeros((len(areas), classes), np.int64)
    parts = []
    for label in sorted({item['label'] for item in (*objects, *found)}):
        evaluation._gts[0, label] = [dict(item, ignore=item['iscrowd']) for item in objects if item['label'] == label]
        evaluation._dts[0, label] = [item for item in found if item['label'] == label]
        evaluation.ious[0, label] = evaluation.computeIoU(0, label)
        of_areas = [evaluation.evaluateImg(0, label, area, most) for area in areas]
        counts[:, label] = [np.count_nonzero(np.asarray(one['gtIgnore']) == 0) for one in of_areas]
        scores = np.array(of_areas[0]['dtScores'], float)
        parts.append((np.full(len(scores), label), scores, np.stack([one['dtMatches'].T != 0 for one in of_areas]),
                      np.stack([one['dtIgnore'].T.astype(bool) for one in of_areas])))
    none = np.zeros((len(areas), 0, len(thresholds)), bool)
    labels, scores, matched, ignored = zip(*parts) if parts else ((), (), (), ())
    return _Matches(counts, np.concatenate([np.zeros(0, int), *labels]), np.concatenate([np.zeros(0), *scores]),
                    np.concatenate([none, *matched], 1), np.concatenate([none, *ignored], 1))


def pair(overlaps: np.ndarray, crowd: np.ndarray) -> Tuple[List[Tuple[int, int]], List[int], List[int]]:
    """Pairs predictions with the objects that they find, whatever the classes are. Each prediction, those of the
    highest score first, finds the object that it overlaps most, if the IoU is at least 0.5 and no other one found it.

    Args:
        overlaps: IoU, (predictions, objects), the predictions by falling score.
        crowd: Whether an object is a crowd, (objects,). It is not to be found, and predictions that overlap it and find
            nothing else are not wrong.

    Returns:
        Pairs of indices, the predictions that find nothing, and the objects that are not found.
    """
    free = ~crowd
    pairs, wrong = [], []
    for index, row in enumerate(overlaps):
        candidates = np.where(free, row, -1.0)
        best = int(candidates.argmax()) if candidates.size else 0
        if candidates.size and candidates[best] >= OVERLAP:
            pairs.append((index, best))
            free[best] = False
        elif not (row[crowd] >= OVERLAP).any():
            wrong.append(index)
    return pairs, wrong, np.flatnonzero(free).tolist()


@dataclass
class _Sums:
    confusion: Dict[str, np.ndarray]
    contours: np.ndarray
    examples: Examples = field(default_factory=Examples)


class DetectionMetric(SummingMetric):
    """Matches predictions with objects as mmdet's ``CocoMetric`` does, and counts classes that are mistaken for each
    other.

    Args:
        classes: Name of each label.
        size: Number of images of the dataset.
        write: Called in the main process with the results.
        objects: Of the images.
        kinds: ``'bbox'`` and ``'segm'``, or one of them.
        thresholds: Of the IoU, (T,), the lowest first.
        encoded: Returns the masks of the n-th image of this process as another metric has encoded them, which takes
            more time than all else; None if it has not.
    """

    def __init__(self, classes: Sequence[str], size: int, write: Callable[[DetectionReport], Any], objects: Objects,
                 kinds: Sequence[str], thresholds: np.ndarray,
                 encoded: Callable[[int], Optional[List[dict]]] = lambda index: None):
        self.classes, self.kinds = list(classes), list(kinds)
        super().__init__(size)
        self.write, self.objects, self.thresholds = write, objects, np.asarray(thresholds, float)
        self.encoded = encoded

    def zero(self) -> _Sums:
        """Returns sums over no image."""
        number = len(self.classes)
        return _Sums({kind: np.zeros((number + 1, number + 1), np.int64) for kind in self.kinds}, np.zeros((2, number)))

    def add(self, sample: dict, position: int, first: bool) -> Tuple[Any, Dict[str, _Matches]]:
        """Matches the predictions of an image.

        Returns:
            The id of the image, and the matches of boxes and masks.
        """
        objects = self.objects.of(sample)
        found, mask_scores = predictions(sample, self.encoded(len(self.results)))
        if 'segm' in self.kinds and found.masks is None:
            raise ValueError('the test_evaluator evaluates masks (segm), and the model predicts none')
        matches = {}
        for kind in self.kinds:
            scores = found.scores if kind == 'bbox' else mask_scores
            matches[kind] = match(objects, self._as_dicts(found, scores, kind), kind, self.thresholds,
                                  len(self.classes))
            if first:
                score = self._confuse(objects, found, scores, kind, sample['ori_shape'])
        if first:
            self.sums.examples.add(score, position, lambda: self._example(sample, score, objects, found))
        return sample['img_id'], matches

    def _as_dicts(self, found: Found, scores: np.ndarray, kind: str) -> List[dict]:
        from pycocotools import mask as coco
        items = [dict(id=number, label=int(label), score=float(score))
                 for number, (label, score) in enumerate(zip(found.labels, scores), 1)]
        areas = found.boxes[:, 2] * found.boxes[:, 3] if kind == 'bbox' else coco.area(found.masks) if items else []
        shapes = found.boxes.tolist() if kind == 'bbox' else found.masks
        key = 'bbox' if kind == 'bbox' else 'segmentation'
        return [{**item, key: shape, 'area': area} for item, shape, area in zip(items, shapes, areas)]

    def _confuse(self, objects: List[dict], found: Found, scores: np.ndarray, kind: str, size: Sequence[int]) -> float:
        """Adds an image to the confusion matrix, and the contours of its masks.

        Returns:
            The F-score of the image; nan if it has no objects and no predictions.
        """
        from pycocotools import mask as coco
        order = np.argsort(-scores, kind='stable')
        order = order[scores[order] >= SCORE]
        crowd = np.array([item['iscrowd'] for item in objects], bool)
        key = 'bbox' if kind == 'bbox' else 'segmentation'
        shapes = found.boxes[order].tolist() if kind == 'bbox' else [found.masks[index] for index in order]
        overlaps = np.zeros((len(order), len(objects)))
        if overlaps.size:
            overlaps = np.asarray(coco.iou(shapes, [item[key] for item in objects], crowd.astype(int).tolist()))
        pairs, wrong, missed = pair(overlaps, crowd)
        confusion, number = self.sums.confusion[kind], len(self.classes)
        right = 0
        for index, place in pairs:
            label, theirs = objects[place]['label'], found.labels[order[index]]
            confusion[label, theirs] += 1
            if label == theirs:
                right += 1
                if kind == 'segm':
                    one, other = (coco.decode(mask).astype(bool) for mask in (shapes[index], objects[place][key]))
                    self.sums.contours[:, label] += boundary_iou(one, other, distance(size)), 1
        np.add.at(confusion, (number, found.labels[order[wrong]]), 1)
        np.add.at(confusion, ([objects[place]['label'] for place in missed], number), 1)
        counted = 2 * len(pairs) + len(wrong) + len(missed)
        return 2 * right / counted if counted else float('nan')

    def _example(self, sample: dict, score: float, objects: List[dict], found: Found) -> Example:
        shown = [item for item in objects if not item['iscrowd']]
        truth = Found(np.array([item['bbox'] for item in shown], float).reshape(-1, 4),
                      np.array([item['label'] for item in shown], int),
                      [item['segmentation'] for item in shown] if 'segm' in self.kinds else None)
        order = np.argsort(found.scores, kind='stable')  # the highest score is drawn last, over the others
        order = order[found.scores[order] >= SCORE]
        masks = [found.masks[index] for index in order] if 'segm' in self.kinds else None
        return Example(sample.get('img_path') or str(sample['img_id']), score, tuple(sample['ori_shape'][:2]), truth,
                       Found(found.boxes[order], found.labels[order], masks, found.scores[order]))

    def compute_metrics(self, results: List[Tuple[Any, Dict[str, _Matches]]]) -> dict:
        """Adds up what the processes found, and hands the results to ``write``."""
        results = sorted(results, key=lambda result: result[0])  # pycocotools sorts by id, which decides between ties
        kinds = {}
        for kind in self.kinds:
            matches = [one[kind] for _, one in results]
            image = np.repeat(np.arange(len(matches)), [len(one.label) for one in matches])
            figures = DetectionFigures(
                [str(name) for name, _ in results], self.classes, list(_RANGES), self.thresholds,
                np.stack([one.objects for one in matches], 1), image,
                *(np.concatenate([getattr(one, name) for one in matches], axis)
                  for name, axis in (('label', 0), ('score', 0), ('matched', 1), ('ignored', 1))))
            kinds[kind] = DetectionResults(figures, sum(sums.confusion[kind] for sums in self.gathered),
                                           sum(sums.contours for sums in self.gathered) if kind == 'segm' else None)
        first, *others = self.gathered
        self.write(DetectionReport(kinds, *first.examples.choose([sums.examples for sums in others])))
        return {}
