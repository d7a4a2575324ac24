"""Tiles cover an image, and what they predict is merged as a plain computation over the whole image has it."""
import numpy as np
import pytest

from mmlk.predict import MaskCrop
from mmlk.predict.tiles import Found, blend, merge, ramps, spans


@pytest.mark.parametrize('length, tile, stride', [(100, 32, 20), (100, 32, 32), (33, 32, 1), (32, 32, 8), (7, 32, 8)])
def test_spans_are_the_windows_of_mmseg(length, tile, stride):
    count = max(length - tile + stride - 1, 0) // stride + 1  # mmseg.models.EncoderDecoder.slide_inference
    ends = [min(index * stride + tile, length) for index in range(count)]
    assert spans(length, tile, stride) == [(max(end - tile, 0), end) for end in ends]


@pytest.mark.parametrize('overlap', [0, 8, 20])
def test_weights_add_up_to_one_and_fall_to_the_edges(overlap):
    tiles = spans(100, 32, 32 - overlap)
    total = np.zeros(100)
    for (start, end), weight in zip(tiles, ramps(tiles, overlap)):
        assert (weight > 0).all()
        total[start:end] += weight
    assert total == pytest.approx(np.ones(100), abs=1e-6)
    first = ramps(tiles, overlap)[0]
    if overlap:
        assert (np.diff(first[32 - overlap:]) < 0).all() and (first[:32 - overlap] == 1).all()


@pytest.mark.parametrize('size, tile, overlap', [
    ((50, 70), 16, 5), ((50, 70), 16, 12), ((16, 33), 16, 0), ((9, 40), 16, 4), ((64, 10), 8, 7)])
def test_blending_part_by_part_is_the_weighted_mean(size, tile, overlap):
    random = np.random.RandomState(0)
    rows, columns = (spans(length, tile, tile - overlap) for length in size)
    scores = {(row, column): random.standard_normal((3, row[1] - row[0], column[1] - column[0])).astype(np.float32)
              for row in rows for column in columns}
    total, weights = np.zeros((3, *size)), np.zeros(size)
    for (row, column), values in scores.items():
        inside = [np.arange(end - start) + 0.5 for start, end in (row, column)]
        distance = [np.minimum(places, places[::-1]) for places in inside]
        weight = np.outer(*(np.minimum(places / overlap, 1) if overlap else places**0 for places in distance))
        total[:, slice(*row), slice(*column)] += weight * values
        weights[slice(*row), slice(*column)] += weight
    found, calls = np.zeros((3, *size)), np.zeros(size, int)

    def put(row, column, part):
        found[:, row, column] = part
        calls[row, column] += 1

    blend(rows, columns, overlap, lambda row, column: scores[(row.start, row.stop), (column.start, column.stop)], put)
    assert (calls == 1).all()
    assert found == pytest.approx(total / weights, abs=1e-5)


def test_scores_that_are_given_are_not_changed():
    scores = np.ones((2, 8, 12), np.float32)
    blend(spans(8, 8, 4), spans(12, 8, 4), 4, lambda row, column: scores[:, row, column], lambda *part: None)
    assert (scores == 1).all()


def found(boxes, scores=None, class_ids=None, crops=None):
    count = len(boxes)
    scores = np.full(count, 0.5) if scores is None else scores
    return Found(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32),
                 np.array(class_ids or [0] * count, np.int64), crops)


LEFT, RIGHT = ((0, 20), (0, 20)), ((0, 20), (10, 30))


def test_one_of_two_boxes_of_an_object_is_kept_and_a_part_gives_way():
    whole, shifted, part = [11, 2, 18, 9], [11, 3, 18, 10], [14, 12, 20, 18]
    left = found([whole, part, [1, 1, 5, 5]], [0.4, 0.95, 0.6])
    right = found([shifted, [14, 12, 26, 18], [24, 2, 28, 6]], [0.8, 0.5, 0.7])
    merged = merge([(left, *LEFT), (right, *RIGHT)], (20, 30), 0.5)
    assert merged.boxes.tolist() == [shifted, [24, 2, 28, 6], [1, 1, 5, 5], [14, 12, 26, 18]]
    assert merged.scores.tolist() == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_detections_of_one_tile_or_of_other_classes_do_not_suppress_each_other():
    boxes = [[12, 2, 18, 9], [12, 3, 18, 9]]
    merged = merge([(found(boxes, [0.4, 0.5]), *LEFT), (found(boxes, [0.6, 0.7], [1, 1]), *RIGHT)], (20, 30), 0.5)
    assert len(merged.boxes) == 4


def test_a_box_at_the_border_of_the_image_is_whole():
    inside, touching = [0, 0, 20, 20], [1, 0, 19.5, 20]
    merged = merge([(found([touching], [0.5]), (0, 20), (0, 20)), (found([[1, 0, 20, 20]], [0.9]), (0, 20), (0, 20))],
                   (20, 20), 0.5)
    assert merged.scores.tolist() == pytest.approx([0.9])
    assert merge([(found([inside], [0.5]), (0, 20), (0, 20))], (20, 20), 0.5).boxes.tolist() == [inside]


def test_tiles_without_detections():
    merged = merge([(found([]), *LEFT), (found([]), *RIGHT)], (20, 30), 0.5)
    assert merged.boxes.shape == (0, 4) and merged.crops is None


def components(image):
    """A detector of bright rectangles: their boxes, with their brightness as the score, and their masks."""
    from skimage.measure import label, regionprops
    regions = regionprops(label(image[..., 0] > 0), intensity_image=image[..., 0])
    boxes = [[left, top, right, bottom] for top, left, bottom, right in (region.bbox for region in regions)]
    crops = [MaskCrop(region.bbox[0], region.bbox[1], region.image) for region in regions]
    return found(boxes, [region.intensity_max / 255 for region in regions], [0] * len(boxes), crops)


@pytest.mark.parametrize('seed', range(5))
def test_objects_smaller_than_the_overlap_are_found_as_in_the_whole_image(seed):
    random = np.random.RandomState(seed)
    image = np.zeros((90, 130, 1), np.uint8)
    for index in range(40):  # rectangles that do not touch each other
        height, width = random.randint(1, 12, 2)
        top, left = random.randint(0, 90 - height), random.randint(0, 130 - width)
        if not image[max(0, top - 1):top + height + 1, max(0, left - 1):left + width + 1].any():
            image[top:top + height, left:left + width] = 100 + index
    whole = components(image)
    rows, columns = (spans(length, 40, 26) for length in image.shape[:2])
    parts = [(components(image[slice(*row), slice(*column)]).moved(row[0], column[0]), row, column)
             for row in rows for column in columns]
    assert sum(len(part.boxes) for part, _, _ in parts) > len(whole.boxes)
    merged = merge(parts, (90, 130), 0.5)
    order = np.argsort(-whole.scores)
    assert merged.boxes.tolist() == whole.boxes[order].tolist()
    assert merged.scores.tolist() == whole.scores[order].tolist()
    for crop, index in zip(merged.crops, order):
        assert crop.place == whole.crops[index].place and (crop.mask == whole.crops[index].mask).all()
