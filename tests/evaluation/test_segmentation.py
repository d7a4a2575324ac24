"""What a test of a segmentor reports: by hand, and equal to mmseg and to independent computations."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from scipy.ndimage import binary_erosion

from mmlk.evaluation import calibration
from mmlk.evaluation.boundary import boundary, boundary_iou, distance
from mmlk.evaluation.calibration import BINS, Calibration, PixelProbabilities
from mmlk.evaluation.examples import Example, Examples
from mmlk.evaluation.segmentation import SegmentationMetric
from mmlk.registry import MODELS
from tests.evaluation.ranks import evaluate, evaluate_in_ranks
from tests.utils import image

NONE = SimpleNamespace(missing='the model has none')


def softmax(scores, labels):
    return scores.softmax(0).gather(0, labels.reshape(1, *scores.shape[1:]).long())[0].numpy()


SOFTMAX = PixelProbabilities.__new__(PixelProbabilities)
SOFTMAX.missing, SOFTMAX._sigmoid = '', False


def sample(truth, predicted, name='a.png', logits=None):
    truth, predicted = (torch.as_tensor(np.asarray(labels))[None] for labels in (truth, predicted))
    found = dict(gt_sem_seg=dict(data=truth), pred_sem_seg=dict(data=predicted), img_path=name)
    return found if logits is None else dict(found, seg_logits=dict(data=logits))


def random_samples(number, classes, size=(40, 50), seed=0, heads=None):
    """Blobs of labels, some ignored, and predictions that are right for most pixels."""
    rng = np.random.RandomState(seed)
    samples = []
    for index in range(number):
        truth = np.kron(rng.randint(0, classes - 1, (size[0] // 5, size[1] // 5)), np.ones((5, 5), int))
        logits = rng.standard_normal((heads or classes, *size))
        np.put_along_axis(logits, truth[None], 2, 0)
        logits = torch.from_numpy(logits).float()
        truth[rng.rand(*size) < 0.1] = 255
        samples.append(sample(truth, logits.argmax(0), f'{index}.png', logits))
    return samples


def test_counts_of_two_images_by_hand():
    """Class d does not occur, c is never predicted, and two pixels are ignored."""
    first = sample([[0, 0, 1], [255, 1, 1]], [[0, 1, 1], [0, 1, 0]], 'first.png')
    second = sample([[2, 2, 255]], [[0, 0, 3]], 'second.png')
    found = evaluate(lambda write: SegmentationMetric('abcd', 2, write, NONE), [first, second])
    assert found.figures.images == ['first.png', 'second.png'] and found.figures.classes == ['a', 'b', 'c', 'd']
    assert found.figures.intersection.tolist() == [[1, 2, 0, 0], [0, 0, 0, 0]]
    assert found.figures.predicted.tolist() == [[2, 3, 0, 0], [2, 0, 0, 0]]
    assert found.figures.labelled.tolist() == [[2, 3, 0, 0], [0, 0, 2, 0]]
    assert found.confusion.tolist() == [[1, 1, 0, 0, 0], [1, 2, 0, 0, 0], [2, 0, 0, 0, 0], [0] * 5]
    nan = pytest.approx([np.nan], nan_ok=True)
    classes = found.classes
    assert classes['IoU'][:3].tolist() == [1 / 5, 2 / 4, 0] and classes['IoU'][3:].tolist() == nan
    assert classes['Acc'][:3].tolist() == [1 / 2, 2 / 3, 0] and classes['Acc'][3:].tolist() == nan
    assert classes['Precision'][:2].tolist() == [1 / 4, 2 / 3]
    assert classes['Precision'][2:].tolist() == pytest.approx([np.nan] * 2, nan_ok=True)
    metrics = found.metrics
    assert metrics['aAcc'] == 3 / 7 and metrics['mIoU'] == pytest.approx((1 / 5 + 2 / 4) / 3)
    assert metrics['mPrecision'] == pytest.approx((1 / 4 + 2 / 3) / 2) and 'ECE' not in metrics
    assert found.calibration is None and found.uncalibrated == 'the model has none'
    # maps of so few pixels are boundary everywhere
    assert classes['Boundary IoU'].tolist() == pytest.approx(classes['IoU'].tolist(), nan_ok=True)


@pytest.mark.parametrize('heads', [None, 9], ids=['', 'more labels than classes'])
def test_equal_to_the_metric_of_mmseg(heads):
    from mmseg.evaluation import IoUMetric
    samples = random_samples(5, 7, heads=heads)
    names = [f'class {index}' for index in range(7)]
    metric = IoUMetric(iou_metrics=['mIoU', 'mFscore'])
    metric.dataset_meta = dict(classes=names)
    metric.process(None, samples)
    totals = [sum(part) for part in zip(*metric.results)]
    theirs = metric.total_area_to_metrics(*totals, ['mIoU', 'mFscore'])
    printed = metric.evaluate(5)
    found = evaluate(lambda write: SegmentationMetric(names, 5, write, NONE), samples)
    ours = found.classes
    for name in ('IoU', 'Acc', 'Precision', 'Recall'):  # float32 of a quotient of whole numbers is exact
        np.testing.assert_array_equal(ours[name].astype(np.float32), theirs[name])
    assert np.isnan(ours['Acc'][6])  # the class is in no label map
    for name in ('aAcc', 'mIoU', 'mAcc', 'mPrecision', 'mRecall'):
        assert round(100 * found.metrics[name], 2) == pytest.approx(float(printed[name]), abs=1e-5)
    if heads:
        assert found.confusion[:, -1].sum() > 0
        assert found.confusion.sum(1).tolist() == found.totals[2].tolist()


def test_other_ignored_labels_and_an_image_without_labels():
    samples = [sample([[0, 1], [1, 1]], [[0, 1], [0, 1]]), sample([[0, 0], [0, 0]], [[0, 1], [0, 1]])]
    found = evaluate(lambda write: SegmentationMetric('ab', 2, write, NONE, ignored=0), samples)
    assert found.figures.labelled.tolist() == [[0, 3], [0, 0]] and found.figures.predicted.tolist() == [[1, 2], [0, 0]]
    assert found.metrics['mIoU'] == pytest.approx((0 + 2 / 3) / 2)
    assert [example.score for example in found.worst] == [pytest.approx(1 / 3)] and not found.best
    numbers = [dict(one, pred_sem_seg=dict(data=one['pred_sem_seg']['data'].float())) for one in samples]  # one channel
    again = evaluate(lambda write: SegmentationMetric('ab', 2, write, NONE, ignored=0), numbers)
    np.testing.assert_array_equal(again.confusion, found.confusion)
    nothing = evaluate(lambda write: SegmentationMetric('ab', 1, write, NONE, ignored=0), samples[1:])
    assert np.isnan(list(nothing.metrics.values())).all() and not nothing.worst


def equal(ours, theirs):
    for name in ('intersection', 'predicted', 'labelled', 'images'):
        np.testing.assert_array_equal(getattr(ours.figures, name), getattr(theirs.figures, name))
    np.testing.assert_array_equal(ours.confusion, theirs.confusion)
    np.testing.assert_array_equal(ours.contours, theirs.contours)
    for name in ('count', 'probability', 'right'):
        np.testing.assert_allclose(getattr(ours.calibration, name), getattr(theirs.calibration, name), rtol=1e-12)
    for name in ('worst', 'best'):
        assert [(e.path, e.score) for e in getattr(ours, name)] == [(e.path, e.score) for e in getattr(theirs, name)]
        for mine, yours in zip(getattr(ours, name), getattr(theirs, name)):
            np.testing.assert_array_equal(mine.prediction, yours.prediction)


def test_two_processes_count_each_image_once(tmp_path):
    """The sampler gives the first of nine images to both."""
    samples = random_samples(9, 4)

    def make(write):
        return SegmentationMetric('abcd', 9, write, SOFTMAX)

    one, two = evaluate(make, samples), evaluate_in_ranks(make, samples, tmp_path / 'two')
    assert len(one.figures.images) == 9 and len(one.worst) == len(one.best) == 4
    assert one.confusion.sum() == one.figures.labelled.sum() == one.calibration.count.sum()
    equal(two, one)
    assert len(two.figures.images) == 9


# Contours

def eroded(mask, width):
    """As in the paper: the outside of the image is not of the mask, and a pixel is taken away around it ``width``
    times."""
    inside = binary_erosion(np.pad(mask, 1), np.ones((3, 3)), iterations=width, border_value=1)[1:-1, 1:-1]
    return mask & ~inside


@pytest.mark.parametrize('size', [(60, 75), (30, 31), (3, 4)])
def test_boundary_iou_is_that_of_eroded_masks(size):
    samples = []
    for seed in range(3):
        predicted = np.kron(np.random.RandomState(seed).randint(0, 5, (4, 5)), np.ones((15, 15), int))
        truth = np.roll(predicted, (1, 2 + seed), (0, 1))
        truth[20:26, 10:40] = 255
        predicted[40, 40] = 5
        samples.append(sample(truth[:size[0], :size[1]], predicted[:size[0], :size[1]]))
    found = evaluate(lambda write: SegmentationMetric('abcdef', 3, write, NONE), samples)
    width = max(1, int(round(0.02 * (size[0] ** 2 + size[1] ** 2) ** 0.5)))
    assert distance(size) == width
    expected = np.zeros((2, 6))
    for one in samples:
        truth, predicted = (one[key]['data'][0].numpy() for key in ('gt_sem_seg', 'pred_sem_seg'))
        for label in range(6):
            first, second = (eroded((labels == label) & (truth != 255), width) for labels in (truth, predicted))
            expected[:, label] += (first & second).sum(), (first | second).sum()
    there = expected[1] > 0
    np.testing.assert_array_equal(found.classes['Boundary IoU'][there], (expected[0] / expected[1].clip(1))[there])


def test_boundaries_at_many_labels_and_widths():
    rng = np.random.RandomState(0)
    labels = np.kron(rng.randint(0, 300, (4, 5)), np.ones((9, 8), int)).astype(np.uint16)
    for width in (1, 3, 50):
        expected = np.zeros(labels.shape, bool)
        for label in np.unique(labels):
            expected |= eroded(labels == label, width)
        np.testing.assert_array_equal(boundary(labels, width), expected)
    first, second = (np.pad(np.ones((12, 12), bool), ((3, 5 - shift), (shift, 6))) for shift in (2, 3))
    first, second = first[:19, :20], np.pad(second, ((0, 1), (0, 0)))[:19, :20]
    one, other = eroded(first, 2), eroded(second, 2)
    assert boundary_iou(first, second, 2) == (one & other).sum() / (one | other).sum() < 1
    assert np.isnan(boundary_iou(first & False, second & False, 2)) and boundary_iou(first, first, 2) == 1


# Calibration

def test_calibration_error_by_hand():
    found = Calibration()
    found.add(np.array([1.0, 0.9, 0.95]), np.array([True, True, False]))
    other = Calibration()
    other.add(np.array([0.0, 0.5]), np.array([False, True]))
    found += other
    assert found.count.tolist() == [1] + [0] * 6 + [1] + [0] * 5 + [1, 2]
    assert found.error == pytest.approx((abs(0 - 0) + abs(0.5 - 1) + abs(0.9 - 1) + abs(1.95 - 1)) / 5)
    edges = Calibration()
    edges.add(np.array([1 / 15, 0.2, 0.2 + 1e-9]), np.array([True] * 3))  # an edge belongs to the bin below it
    assert edges.count.tolist() == [1, 0, 1, 1] + [0] * 11
    assert np.isnan(Calibration().error) and np.isnan(Calibration().means[0]).all()


def test_calibration_of_pixels_equals_a_loop():
    samples = random_samples(3, 5, (20, 25))
    found = evaluate(lambda write: SegmentationMetric('abcde', 3, write, SOFTMAX), samples).calibration
    probability, right = [], []
    for one in samples:
        truth, predicted = one['gt_sem_seg']['data'][0].numpy(), one['pred_sem_seg']['data'][0].numpy()
        top = one['seg_logits']['data'].double().softmax(0).amax(0).numpy()
        probability += top[truth != 255].tolist()
        right += (truth == predicted)[truth != 255].tolist()
    probability, right, expected = np.array(probability), np.array(right), 0
    for index in range(BINS):
        within = (probability > index / BINS) & (probability <= (index + 1) / BINS)
        if within.any():
            expected += within.mean() * abs(probability[within].mean() - right[within].mean())
    assert found.error == pytest.approx(expected, rel=1e-5) and found.count.sum() == right.size


def head(**settings):
    init_default_scope('mmseg')
    settings = {**dict(type='FCNHead', in_channels=4, channels=4, num_classes=3, num_convs=1), **settings}
    return SimpleNamespace(decode_head=MODELS.build(settings))


def test_probabilities_of_each_kind_of_head(monkeypatch):
    logits = torch.tensor([[[2.0, 0.0]], [[1.0, 3.0]], [[0.0, 1.0]]])
    labels = logits.argmax(0)
    found = PixelProbabilities(head())(logits, labels)
    np.testing.assert_allclose(found, logits.softmax(0).amax(0), rtol=1e-6)
    found = PixelProbabilities(head(loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)))(logits, labels[None])
    np.testing.assert_allclose(found, logits.sigmoid().amax(0), rtol=1e-6)
    monkeypatch.setattr(calibration, '_ELEMENTS', 20)  # two rows at a time
    many = image(3, 9, 3)
    np.testing.assert_allclose(PixelProbabilities(head())(many.bfloat16(), many.bfloat16().argmax(0)),
                               many.bfloat16().float().softmax(0).amax(0), rtol=1e-6)
    for shift in (60, -60, 88.5, -88.5, 1e4, -1e4):  # exponentials too large or too small for float32
        far = 4 * many + shift * (torch.arange(9) % 3)[:, None]
        np.testing.assert_allclose(PixelProbabilities(head())(far, far.argmax(0)), far.softmax(0).amax(0), rtol=1e-6)
    both = [dict(type='CrossEntropyLoss', loss_name='loss_ce'), dict(type='DiceLoss', loss_name='loss_dice')]
    np.testing.assert_allclose(PixelProbabilities(head(loss_decode=both))(logits, labels),
                               logits.softmax(0).amax(0), rtol=1e-6)
    # one channel: mmseg keeps its probability, and takes label 1 above 0.3
    one = PixelProbabilities(head(num_classes=2, out_channels=1, loss_decode=dict(
        type='CrossEntropyLoss', use_sigmoid=True)))
    np.testing.assert_allclose(one(torch.tensor([[[0.9, 0.4, 0.2]]]), torch.tensor([[1.0, 1.0, 0.0]])),
                               [[0.9, 0.4, 0.8]], rtol=1e-6)
    assert 'test-time augmentation' in PixelProbabilities(head(), averaged=True).missing


def test_methods_without_probabilities_are_named():
    cfg = Config.fromfile('configs/demo/mask2former_replknet-tiny_ade20k.py')
    init_default_scope('mmseg')
    masks = SimpleNamespace(decode_head=MODELS.build(cfg.model.decode_head))
    assert PixelProbabilities(masks).missing.startswith('Mask2FormerHead scores the classes of a pixel by sums over')


# The worst and the best images

def kept(scores, parts=1):
    every = [Examples() for _ in range(parts)]
    for position, score in enumerate(scores):
        every[position % parts].add(score, position, lambda p=position, s=score: Example(str(p), s, (1, 1), None, None))
    first, *others = every
    return [[int(example.path) for example in chosen] for chosen in first.choose(others)]


@pytest.mark.parametrize('scores, worst, best', [
    ([0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.6, 0.7, 0.0], [9, 1, 4, 3], [2, 5, 8, 7]),
    ([0.5] * 10, [0, 1, 2, 3], [9, 8, 7, 6]),
    ([0.5, np.nan, 0.4], [2], [0]),
    ([0.3], [0], []),
    ([np.nan], [], []),
    ([0.3, 0.2, 0.1, 0.4, 0.5], [2, 1, 0], [4, 3])])
def test_worst_and_best_images(scores, worst, best):
    for parts in (1, 2, 3):
        assert kept(scores, parts) == [worst, best]
